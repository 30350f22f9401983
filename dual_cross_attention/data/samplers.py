"""In which order an epoch shows its images: the one thing that a run must be able to take up in the middle."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np


class BatchOrder(ABC):
    """The micro-batches of every epoch, as indices into a dataset.

    What comes out depends on the arguments alone, so that an interrupted run, or one on another number of processes,
    sees the batches that it would have seen.

    Attributes:
        num_batches: of an epoch; the same for every epoch.
        unit: images of a batch that stay together wherever it is cut: K of an identity.
        smallest: fewest images that can be trained on at a time.
    """

    num_batches: int
    unit: int = 1
    smallest: int = 1

    @abstractmethod
    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """The micro-batches of an epoch from number `start` on (the first is 0)."""


class SequentialOrder(BatchOrder):
    """Every image once, as they come, in every epoch.

    Args:
        count: images.
        batch_size: images of a batch; the last may be short.
    """

    def __init__(self, count: int, batch_size: int):
        self.count, self.batch_size = count, batch_size
        self.num_batches = -(-count // batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        for first in range(start * self.batch_size, self.count, self.batch_size):
            yield list(range(first, min(first + self.batch_size, self.count)))


class ShuffledOrder(BatchOrder):
    """Every image once, in random order.

    The last batch is kept when it is short, unless it has fewer than `min_batch` images.

    With `block`, images that lie next to each other are shuffled, then those after them, in blocks whose order is
    random too: so the memory that it takes is that of a block, and images that are read at about the same time are
    about in the same place. That is as good as one shuffle if they lie in random order.

    Args:
        count: images.
        batch_size: images of a micro-batch.
        min_batch: fewest images of one; 2 with PWCA, where each needs a distractor.
        seed: of the order.
        block: images of a block, at most; None, or as many as there are: all of them are one.
    """

    def __init__(self, count: int, batch_size: int, min_batch: int = 1, seed: int = 0, block: int | None = None):
        self.count, self.batch_size, self.smallest, self.seed = count, batch_size, min_batch, seed
        self.num_batches = count // batch_size + (count % batch_size >= min_batch)
        blocks = -(-count // block) if block else 1
        self.bounds = np.arange(blocks + 1) * count // blocks  # the first image of each block, and the end

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        pieces = self._shuffled(epoch, start * self.batch_size)
        ready = np.empty(0, dtype=np.int64)
        for number in range(start, self.num_batches):
            wanted = min(self.batch_size, self.count - number * self.batch_size)
            while len(ready) < wanted:
                ready = np.concatenate([ready, next(pieces)])
            yield ready[:wanted].tolist()
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
                # 0 in place of 1 + block would give the numbers that the order of the blocks is drawn from.
                shuffled = np.random.default_rng((self.seed, epoch, 1 + block)).permutation(end - start)
                yield start + shuffled[first:]
            first = max(0, first - (end - start))
