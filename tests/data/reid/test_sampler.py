"""P x K batches: full, of different identities, over all images, and the same for the same seed."""

from collections import Counter

import numpy as np
import pytest

from dual_cross_attention.data import IdentitySampler
from dual_cross_attention.errors import InputError
from dual_cross_attention.training.distributed.partition import MicroBatchPartition

LABELS = {
    "even": [identity for identity in range(20) for _ in range(8)],
    "uneven": np.random.default_rng(0).integers(0, 30, 500).tolist() + list(range(30)),
    "fewer than K": [0, 1, 1, 2, 2, 2, 3, 4],
    "one has most": [0] * 100 + [1] * 3 + [2] * 2 + [3] + [4] * 5,
    "shuffled": np.random.default_rng(1).permutation(np.repeat(np.arange(16), 5)).tolist(),
}


def batches(labels, identities, images, seed=0, epoch=1) -> np.ndarray:
    """Positions of the images, (batches, P, K)."""
    sampler = IdentitySampler(labels, identities, images, seed)
    drawn = list(sampler.batches(epoch))
    assert len(drawn) == sampler.num_batches
    assert {len(batch) for batch in drawn} == {identities * images}
    keys = [key for batch in drawn for key in batch]
    assert {key.epoch for key in keys} == {epoch}
    seen = Counter()
    for key in keys:  # an image that comes again has another repeat, so another augmentation
        assert key.repeat == seen[key.index]
        seen[key.index] += 1
    return np.array([key.index for key in keys]).reshape(-1, identities, images)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize(("identities", "images"), [(4, 4), (2, 3), (5, 1)])
def test_every_batch_has_p_identities_with_k_images_and_an_epoch_all_images(name, identities, images):
    labels = np.array(LABELS[name])
    drawn = batches(labels, identities, images)
    assert set(drawn.flatten()) == set(range(len(labels)))
    for batch in labels[drawn]:
        assert (batch == batch[:, :1]).all()
        assert len(set(batch[:, 0])) == identities
    for group in drawn.reshape(-1, images):  # repeated only where there are fewer than K
        assert len(set(group)) == min(images, (labels == labels[group[0]]).sum())


def test_an_epoch_is_as_short_as_full_batches_allow():
    # 30 identities with 500 images: no image is shown much more often than it must be.
    labels = LABELS["uneven"]
    groups = {identity: -(-count // 4) for identity, count in Counter(labels).items()}
    assert len(batches(labels, 4, 4)) == -(-sum(groups.values()) // 4)
    # An identity with 25 groups needs 25 batches: it is in a batch once.
    assert len(batches(LABELS["one has most"], 2, 4)) == 25


def test_images_come_once_where_all_groups_are_full():
    assert sorted(batches(LABELS["even"], 4, 4).flatten()) == list(range(160))


def test_order_follows_seed_and_epoch_alone():
    labels = LABELS["uneven"]
    first = batches(labels, 4, 4, seed=3, epoch=2)
    np.random.seed(5)
    assert (batches(labels, 4, 4, seed=3, epoch=2) == first).all()
    assert (batches(labels, 4, 4, seed=3, epoch=3) != first).any()
    assert (batches(labels, 4, 4, seed=4, epoch=2) != first).any()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_whole_batches(processes):
    """Every process has P x K batches, and those that count are disjoint and are the whole epoch."""
    labels = np.array(LABELS["even"])  # 10 batches of 4 x 4, of images that come once
    epoch = list(IdentitySampler(labels, 4, 4).batches(1))
    counts = Counter()
    for process in range(processes):
        partition = MicroBatchPartition(len(epoch), 2 * processes, process, processes)
        for number, weight in (
            part for step in range(partition.steps_per_epoch) for part in partition.micro_batches_of(step)
        ):
            images = [key.index for key in epoch[number]]
            batch = np.array(images).reshape(4, 4)
            assert (labels[batch] == labels[batch][:, :1]).all() and len(set(labels[batch][:, 0])) == 4
            counts.update(images if weight else [])
    assert counts == Counter(range(160))


@pytest.mark.parametrize("start", [0, 1, 7, 100])
def test_an_epoch_can_be_taken_up_in_the_middle(start):
    sampler = IdentitySampler(LABELS["uneven"], 4, 4)
    assert list(sampler.batches(2, start)) == list(sampler.batches(2))[start:]


def test_what_cannot_work_is_refused():
    with pytest.raises(InputError, match=r"16 identities.* 3"):
        IdentitySampler([0, 1, 2, 2], 16, 4)
    with pytest.raises(InputError, match="at least one"):
        IdentitySampler([0, 1], 2, 0)
