"""In which order an epoch shows its pictures: the one thing that a run must be able to take up in the middle."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np


class BatchOrder(ABC):
    """The micro-batches of every epoch, as indices into a data set.

    What comes out depends on the arguments alone, so that an interrupted run, or one on another number of processes,
    sees the batches that it would have seen.

    Attributes:
        num_batches: of an epoch; the same for every epoch.
        unit: pictures of a batch that stay together wherever it is cut: K of an identity.
        smallest: fewest pictures that can be trained on at a time.
    """

    num_batches: int
    unit: int = 1
    smallest: int = 1

    @abstractmethod
    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """The micro-batches of an epoch from number `start` on (the first is 0)."""


class SequentialOrder(BatchOrder):
    """Every picture once, as they come, in every epoch.

    Args:
        count: pictures.
        batch_size: pictures of a batch; the last may be short.
    """

    def __init__(self, count: int, batch_size: int):
        self.count, self.batch_size = count, batch_size
        self.num_batches = -(-count // batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        for first in range(start * self.batch_size, self.count, self.batch_size):
            yield list(range(first, min(first + self.batch_size, self.count)))


class ShuffledOrder(BatchOrder):
    """Every picture once, in random order.

    The last batch is kept when it is short, unless it has fewer than `min_batch` pictures.

    Args:
        count: pictures.
        batch_size: pictures of a micro-batch.
        min_batch: fewest pictures of one; 2 with PWCA, where each needs a distractor.
        seed: of the order.
    """

    def __init__(self, count: int, batch_size: int, min_batch: int = 1, seed: int = 0):
        self.count, self.batch_size, self.smallest, self.seed = count, batch_size, min_batch, seed
        self.num_batches = count // batch_size + (count % batch_size >= min_batch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        shuffled = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        for number in range(start, self.num_batches):
            yield shuffled[number * self.batch_size : (number + 1) * self.batch_size].tolist()
