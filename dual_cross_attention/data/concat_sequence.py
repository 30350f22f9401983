"""A lazy concatenation of sequences, without copies."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

Item = TypeVar("Item")


class ConcatSequence(Sequence[Item]):
    """The elements of the first part, then those of the second, and so on."""

    def __init__(self, *parts: Sequence[Item]):
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, position: int) -> Item:
        position = range(len(self))[position]  # negative and out of range
        part = bisect_right(self.ends, position)
        return self.parts[part][position - (self.ends[part - 1] if part else 0)]
