"""Which images make which batch, in blocks: all of an epoch, from any point on, whatever came before."""

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dual_cross_attention.data import IdentitySampler
from dual_cross_attention.data.reid.blocks import BlockIdentitySampler
from dual_cross_attention.data.samplers import ShuffledBatchSampler
from dual_cross_attention.errors import InputError
from dual_cross_attention.training.distributed.partition import MicroBatchPartition


def indices_of(keys) -> list[int]:
    return [key.index for key in keys]


some = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@some
@given(
    count=st.integers(2, 300),
    batch_size=st.integers(1, 20),
    block=st.integers(1, 320),
    min_batch=st.integers(1, 2),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    start=st.integers(0, 320),
)
def test_any_blocks(count, batch_size, block, min_batch, seed, epoch, start):
    batch_size = max(batch_size, min_batch)
    order = ShuffledBatchSampler(count, batch_size, min_batch, seed, block)
    batches = list(order.batches(epoch))
    assert len(batches) == order.num_batches
    assert {(key.epoch, key.repeat) for batch in batches for key in batch} <= {(epoch, 0)}
    shown = [key.index for batch in batches for key in batch]
    left_out = count % batch_size if count % batch_size < min_batch else 0
    assert len(shown) == len(set(shown)) == count - left_out and set(shown) <= set(range(count))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert list(order.batches(epoch, start)) == batches[start:]
    if count <= block:
        assert batches == list(ShuffledBatchSampler(count, batch_size, min_batch, seed).batches(epoch))
    # A block's images come one after the other, and it has no more than it may.
    blocks = [np.searchsorted(order.bounds, number, side="right") - 1 for number in shown]
    assert len(set(blocks)) == 1 + sum(one != other for one, other in pairwise(blocks))
    assert np.diff(order.bounds).max() <= block


def test_one_shuffle_is_what_it_was():
    """Runs of earlier versions continue: the permutation of (seed, epoch), cut into batches."""
    shuffled = np.random.default_rng((3, 7)).permutation(103)
    for block in (None, 103, 65_536):
        ours = [indices_of(batch) for batch in ShuffledBatchSampler(103, 10, 2, 3, block).batches(7)]
        assert ours == [shuffled[start : start + 10].tolist() for start in range(0, 103, 10)]


def test_blocks_and_their_insides_differ_by_epoch_and_seed():
    orders = {(seed, epoch): ShuffledBatchSampler(1000, 10, 1, seed, 100) for seed in (0, 1) for epoch in (1, 2)}
    epochs = {key: np.concatenate([*map(indices_of, order.batches(key[1]))]) for key, order in orders.items()}
    assert len({tuple(shown.tolist()) for shown in epochs.values()}) == 4
    # Which block comes first differs, and what is at a place within a block is not the same in all of them.
    assert len({tuple((shown[::100] // 100).tolist()) for shown in epochs.values()}) == 4
    inside = epochs[0, 1].reshape(10, 100) % 100
    assert len({tuple(row.tolist()) for row in inside}) == 10


def test_any_start_of_a_huge_epoch_is_reached_at_once():
    """65,536 numbers are drawn, not 10⁹."""
    order = ShuffledBatchSampler(10**9, 16, 2, 0, 65_536)
    last = order.num_batches - 3
    assert [len(batch) for batch in order.batches(1, last)] == [16, 16, 16]
    assert next(order.batches(1, 1000)) == list(islice(order.batches(1, 998), 3))[2]


COUNTS = {
    "even": [8] * 40,
    "uneven": np.random.default_rng(0).integers(1, 30, 50).tolist(),
    "one has most": [2, 3, 200, 1, 4, 5, 2, 8, 9, 1, 1, 1],
    "fewer than K": [1, 2] * 12,
}


def labels_of(counts) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize("block", [10, 60, 100_000])
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(("p", "k"), [(4, 4), (2, 3), (5, 1)])
def test_identities_in_blocks(name, p, k, block):
    counts, labels = COUNTS[name], labels_of(COUNTS[name])
    order = BlockIdentitySampler(counts, p, k, seed=3, block=block)
    for epoch in (1, 2):
        batches = list(order.batches(epoch))
        assert len(batches) == order.num_batches  # the same in every epoch
        flat = [key for batch in batches for key in batch]
        assert len(set(flat)) == len(flat)  # an image that comes again has another repeat
        assert set(indices_of(flat)) == set(range(len(labels)))
        for batch in labels[np.array(indices_of(flat)).reshape(-1, p, k)]:
            assert (batch == batch[:, :1]).all() and len(set(batch[:, 0])) == p
        for start in (0, 1, len(batches) // 2, len(batches) - 1, len(batches), len(batches) + 5):
            assert list(order.batches(epoch, start)) == batches[start:]
    assert list(order.batches(1)) != list(order.batches(2))
    assert (order.unit, order.smallest) == (k, 2 * k)
    if len(order.bounds) == 2:
        assert list(order.batches(1)) == list(IdentitySampler(labels, p, k, 3).batches(1))
    else:
        assert np.diff(order.bounds).min() >= p
        assert block < sum(counts)


@some
@given(
    counts=st.lists(st.integers(1, 12), min_size=3, max_size=40),
    p=st.integers(1, 3),
    k=st.integers(1, 4),
    block=st.integers(1, 100),
    start=st.integers(0, 30),
)
def test_any_identities(counts, p, k, block, start):
    order = BlockIdentitySampler(counts, p, k, seed=0, block=block)
    batches = list(order.batches(4))
    assert len(batches) == order.num_batches and {len(batch) for batch in batches} == {p * k}
    assert {key.index for batch in batches for key in batch} == set(range(sum(counts)))
    assert list(order.batches(4, start)) == batches[start:]


def test_processes_share_out_whole_batches():
    """Identity batches stay whole, and no two processes have an image in common."""
    order = BlockIdentitySampler([8] * 40, 4, 4, seed=0, block=80)
    epoch = list(order.batches(1))
    taken = []
    for process in range(2):
        partition = MicroBatchPartition(len(epoch), 4, process, 2)
        parts = [part for step in range(partition.steps_per_epoch) for part in partition.micro_batches_of(step)]
        taken.append({key.index for number, weight in parts if weight for key in epoch[number]})
    assert not taken[0] & taken[1] and len(taken[0] | taken[1]) == 320


def test_too_few_identities():
    with pytest.raises(InputError, match=r"16 identities.* 3"):
        BlockIdentitySampler([4, 4, 4], 16, 4, 0, 100)
