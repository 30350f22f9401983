"""Batch samplers: the images of each micro-batch, as a pure function of seed and epoch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

CLASS_BALANCE = 2**33
"""Entropy that tells the order of `BalancedBatchSampler` from that of a block of `ShuffledBatchSampler`."""


class SampleKey(NamedTuple):
    """Key of a sample of `ImageDataset`, which depends only on it and the dataset's arguments.

    Args:
        epoch: counted from 1 in training; 0 in evaluation.
        index: of the image in the list.
        repeat: number of earlier occurrences in this epoch, so that each is augmented differently.
    """

    epoch: int
    index: int
    repeat: int = 0


class EpochBatchSampler(ABC):
    """Micro-batches of every epoch.

    The result depends on the arguments alone, so a resumed run, or one on another number of ranks, gets the same
    batches.

    Attributes:
        num_batches: of an epoch; the same for every epoch.
        unit: number of images that are never split between chunks of a batch: K of an identity.
        smallest: least number of images of a chunk.
    """

    num_batches: int
    unit: int = 1
    smallest: int = 1

    @abstractmethod
    def batches(self, epoch: int, start: int = 0) -> Iterator[list[SampleKey]]:
        """The micro-batches of an epoch from number `start` (the first is 0) to the last."""

    def select(self, epoch: int, numbers: Iterable[int]) -> Iterator[list[SampleKey]]:
        """Some micro-batches of an epoch.

        Args:
            epoch: see `SampleKey`.
            numbers: of the micro-batches, ascending; a number may come several times.
        """
        numbers = list(numbers)
        if not numbers:
            return
        batches = enumerate(self.batches(epoch, numbers[0]), numbers[0])
        at, batch = next(batches)
        for number in numbers:
            while at < number:
                at, batch = next(batches)
            yield batch


class SequentialBatchSampler(EpochBatchSampler):
    """Every image once, in order, in every epoch.

    Args:
        count: images.
        batch_size: images of a batch; the last may be smaller.
    """

    def __init__(self, count: int, batch_size: int):
        self.count, self.batch_size = count, batch_size
        self.num_batches = -(-count // batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[SampleKey]]:
        for first in range(start * self.batch_size, self.count, self.batch_size):
            yield keys_of(epoch, range(first, min(first + self.batch_size, self.count)))


class ShuffledBatchSampler(EpochBatchSampler):
    """Every image once, in random order.

    The last batch is kept when it is smaller, unless it has fewer than `min_batch` images.

    With `block`, consecutive images are shuffled in blocks, and the blocks are in random order too. That takes the
    memory of one block, and reads are close to each other on the disk. It is equivalent to a full shuffle if the images
    are stored in random order.

    Args:
        count: images.
        batch_size: images of a micro-batch.
        min_batch: fewest images of one; 2 with PWCA, where each needs a distractor.
        seed: of the order.
        block: largest number of images of a block; None, or at least `count`: one block of all images.
    """

    def __init__(self, count: int, batch_size: int, min_batch: int = 1, seed: int = 0, block: int | None = None):
        self.count, self.batch_size, self.smallest, self.seed = count, batch_size, min_batch, seed
        self.num_batches = count // batch_size + (count % batch_size >= min_batch)
        blocks = -(-count // block) if block else 1
        self.bounds = np.arange(blocks + 1) * count // blocks  # the first image of each block, and the end

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[SampleKey]]:
        blocks = self._shuffled(epoch, start * self.batch_size)
        ready = np.empty(0, dtype=np.int64)
        for number in range(start, self.num_batches):
            wanted = min(self.batch_size, self.count - number * self.batch_size)
            while len(ready) < wanted:
                ready = np.concatenate([ready, next(blocks)])
            yield keys_of(epoch, ready[:wanted].tolist())
            ready = ready[wanted:]

    def _shuffled(self, epoch: int, first: int) -> Iterator[np.ndarray]:
        """The order of all images from its element `first` on, a block at a time."""
        random = np.random.default_rng((self.seed, epoch))
        if len(self.bounds) == 2:
            yield random.permutation(self.count)[first:]
            return
        for block in random.permutation(len(self.bounds) - 1):
            start, end = self.bounds[block], self.bounds[block + 1]
            if first < end - start:
                # 0 in place of 1 + block would seed as the order of the blocks is seeded.
                shuffled = np.random.default_rng((self.seed, epoch, 1 + block)).permutation(end - start)
                yield start + shuffled[first:]
            first = max(0, first - (end - start))


class BalancedBatchSampler(ShuffledBatchSampler):
    """As many images an epoch as there are, sampled with replacement so that each class is equally likely.

    As torch's `WeightedRandomSampler` with a weight of 1 / (images of the class), but with the order a function of seed
    and epoch, and in blocks where images are stored in archives. An image that comes several times in an epoch is
    augmented differently each time.

    Args:
        labels: class of each image.
        batch_size, min_batch, seed, block: as of `ShuffledBatchSampler`.
    """

    def __init__(
        self, labels: Sequence[int], batch_size: int, min_batch: int = 1, seed: int = 0, block: int | None = None
    ):
        super().__init__(len(labels), batch_size, min_batch, seed, block)
        _, of_image, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
        self.weights = 1 / (counts[of_image] * len(counts))

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[SampleKey]]:
        order = np.concatenate([np.empty(0, dtype=np.int64), *self._sampled_blocks(epoch)])
        repeats = _earlier_occurrences(order)
        for number in range(start, self.num_batches):
            rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
            yield [
                SampleKey(epoch, index, repeat)
                for index, repeat in zip(order[rows].tolist(), repeats[rows].tolist(), strict=True)
            ]

    def _sampled_blocks(self, epoch: int) -> Iterator[np.ndarray]:
        """The images of each block, as often as they were sampled; blocks and images in random order."""
        random = np.random.default_rng((self.seed, epoch, CLASS_BALANCE))
        times = np.bincount(random.choice(self.count, self.count, p=self.weights), minlength=self.count)
        for block in random.permutation(len(self.bounds) - 1):
            start, end = self.bounds[block], self.bounds[block + 1]
            yield random.permutation(np.repeat(np.arange(start, end), times[start:end]))


def _earlier_occurrences(values: np.ndarray) -> np.ndarray:
    """For each value, how often it occurs before."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, ordered)
    earlier = np.empty(len(values), dtype=np.int64)
    earlier[order] = np.arange(len(values)) - first
    return earlier


def keys_of(epoch: int, indices: Iterable[int]) -> list[SampleKey]:
    """Keys of images that come for the first time in an epoch."""
    return [SampleKey(epoch, index) for index in indices]
