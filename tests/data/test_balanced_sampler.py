"""Batches in which all classes are equally likely."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from dual_cross_attention.data.samplers import BalancedBatchSampler, ShuffledBatchSampler

LABELS = [0] * 80 + [1] * 15 + [2] * 5


def keys(sampler, epoch, start=0):
    return [key for batch in sampler.batches(epoch, start) for key in batch]


@pytest.mark.parametrize("block", [None, 30])
def test_classes_and_images_of_a_class_are_equally_likely(block):
    sampler = BalancedBatchSampler(LABELS, 8, seed=1, block=block)
    seen = Counter(key.index for epoch in range(1, 301) for key in keys(sampler, epoch))
    classes = Counter()
    for index, count in seen.items():
        classes[LABELS[index]] += count
    assert seen.total() == 300 * len(LABELS)
    for label, of_class in ((0, 80), (1, 15), (2, 5)):
        assert classes[label] / seen.total() == pytest.approx(1 / 3, abs=0.01)
        counts = [seen[index] for index in range(len(LABELS)) if LABELS[index] == label]
        np.testing.assert_allclose(counts, 300 * len(LABELS) / 3 / of_class, rtol=0.35)


@pytest.mark.parametrize("block", [None, 30])
@pytest.mark.parametrize(("batch_size", "min_batch"), [(8, 1), (9, 2), (33, 2)])
def test_batches_have_the_sizes_of_a_shuffle_and_can_be_read_from_any_point(block, batch_size, min_batch):
    sampler = BalancedBatchSampler(LABELS, batch_size, min_batch, seed=1, block=block)
    plain = ShuffledBatchSampler(len(LABELS), batch_size, min_batch, seed=1, block=block)
    batches = list(sampler.batches(4))
    assert [*map(len, batches)] == [*map(len, plain.batches(4))] and sampler.num_batches == len(batches)
    assert list(sampler.batches(4, 2)) == batches[2:]
    assert list(sampler.select(4, [1, 1, 2])) == [batches[1], batches[1], batches[2]]
    assert list(BalancedBatchSampler(LABELS, batch_size, min_batch, seed=1, block=block).batches(4)) == batches
    assert list(sampler.batches(5)) != batches
    assert list(BalancedBatchSampler(LABELS, batch_size, min_batch, seed=2, block=block).batches(4)) != batches


def test_an_image_that_comes_again_is_another_sample():
    sampled = keys(BalancedBatchSampler(LABELS, 8, seed=1), 1)
    assert len(set(sampled)) == len(LABELS) and max(key.repeat for key in sampled) > 2
    occurrences = Counter()
    for key in sampled:
        assert key.repeat == occurrences[key.index]
        occurrences[key.index] += 1


def test_images_of_a_block_are_read_together():
    blocks = [key.index // 25 for key in keys(BalancedBatchSampler(LABELS, 8, seed=1, block=25), 1)]
    assert sum(one != other for one, other in pairwise(blocks)) == len(set(blocks)) - 1 == 3
