"""Columns of an index as lazy sequences: an element is read from disk when it is accessed."""

from collections.abc import Sequence

import numpy as np

from dual_cross_attention.data.shards.index import Index
from dual_cross_attention.data.shards.member import Member
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape


class IndexedImages(Sequence[Member]):
    """The images of an index."""

    def __init__(self, index: Index):
        self.index = index

    def __len__(self) -> int:
        return len(self.index.rows)

    def __getitem__(self, position: int) -> Member:
        row = self.index.rows[position]
        archive = int(row["archive"])
        if archive >= len(self.index.archives):
            raise _damaged(self.index)
        name = row["name"].decode("utf-8", "surrogateescape")
        return Member(self.index.archives[archive], int(row["offset"]), int(row["size"]), name)


class IndexedNumbers(Sequence[int]):
    """One number per image: its label, identity or camera.

    Args:
        index: the index.
        field: "label" or "camera".
        table: (distinct labels or cameras,) integers: the number for each position in the index's sorted list.
    """

    def __init__(self, index: Index, field: str, table: np.ndarray):
        self.index, self.field, self.table = index, field, np.asarray(table, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.index.rows)

    def __getitem__(self, position: int) -> int:
        place = self.index.rows[position][self.field]
        if place >= len(self.table):
            raise _damaged(self.index)
        return int(self.table[place])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """All numbers, (images,) int64."""
        places = self.index.rows[self.field]
        if len(places) and places.max() >= len(self.table):
            raise _damaged(self.index)
        return self.table[places].astype(dtype or np.int64, copy=False)

    @property
    def counts(self) -> np.ndarray:
        """Number of images of each label, in the order of `table`."""
        return self.index.counts

    def distinct(self) -> np.ndarray:
        """Labels that occur, ascending; see `labels.distinct`."""
        return np.sort(self.table)


def _damaged(index: Index) -> InputError:
    return InputError(f"shards: {escape(index.path)} is damaged: remove it, and it is made again")
