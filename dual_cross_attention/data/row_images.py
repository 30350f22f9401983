"""Images in the rows of a table on disk, as lazy sequences: a row is read when its image is."""

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr
from dual_cross_attention.untrusted_files import inside, open_regular


class RowImage(NamedTuple):
    """An image in a row; `str(image)` is TABLE[ROW].

    Args:
        images: the sequence that it is of.
        row: its row in the table.
    """

    images: "RowImages"
    row: int

    def __str__(self) -> str:
        return self.images._where(self.row)

    def open(self) -> BinaryIO:
        """The bytes of the image, as a file.

        Raises:
            OSError: the row has none, and no file inside of the table's folder.
        """
        return self.images.open(self.row)


class RowImages(Sequence[RowImage | Path]):
    """The images of a column. A copy for another process has the table's path, not its rows.

    Args:
        rows: table whose `rows[number][column]` is the bytes of an image file, the path of one, or both, as
            {"bytes": ..., "path": ...}; memory-mapped, as those of the library `datasets`.
        column: of the images.
        name: of the table, for messages.
        folders: files are inside of one of them; empty: the table has the bytes of all images.
        are_files: whether all images are files, which are given by their paths.
        positions: (n,) rows that are taken, in order; None: all.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        column: str,
        name: str,
        folders: Sequence[Path] = (),
        are_files: bool = False,
        positions: np.ndarray | None = None,
    ):
        self.rows, self.column, self.name = rows, column, name
        self.folders, self.are_files, self.positions = folders, are_files, positions

    def __len__(self) -> int:
        return len(self.rows) if self.positions is None else len(self.positions)

    def __getitem__(self, position: int) -> RowImage | Path:
        row = range(len(self))[position]  # negative and out of range
        row = row if self.positions is None else int(self.positions[row])
        if not self.are_files:
            return RowImage(self, row)
        _, path = self._content(row)
        return self._file(path, row)

    def select(self, positions: np.ndarray) -> "RowImages":
        """These images of the sequence, (n,) positions."""
        rows = positions if self.positions is None else self.positions[positions]
        return RowImages(self.rows, self.column, self.name, self.folders, self.are_files, rows)

    def open(self, row: int) -> BinaryIO:
        """See `RowImage.open`."""
        content, path = self._content(row)
        if content is not None:
            return io.BytesIO(content)
        try:
            return open_regular(self._file(path, row))
        except InputError as error:
            # Without the row, which what reads the image names.
            raise OSError(0, f"{error}".removeprefix(f"{self._where(row)}: ")) from error

    def _content(self, row: int) -> tuple[bytes | None, Any]:
        """Bytes and path of the image of a row; the bytes are None if there are none."""
        value = self.rows[row][self.column]
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
        return (bytes(content) if isinstance(content, bytes | bytearray) else None), path

    def _file(self, path: Any, row: int) -> Path:
        where = self._where(row)
        if not self.folders or not isinstance(path, str) or not path:
            raise InputError(f"{where}: expected the bytes of an image in the column, got {short_repr(path)}")
        for folder in self.folders[1:]:
            with suppress(InputError):
                return inside(folder, path, where)
        return inside(self.folders[0], path, where)

    def _where(self, row: int) -> str:
        return f"{self.name}[{row}]"
