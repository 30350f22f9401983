"""A reference to an image inside a tar archive."""

import io
import os
import tarfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dual_cross_attention.untrusted_files import open_regular

BLOCK = 512
"""Block size of tar in bytes; a member is a header of one block, then its content."""
SHORT_NAME = 100  # bytes of a name in a plain header; longer names are in an extended header before it


class Member(NamedTuple):
    """A regular file in an uncompressed tar archive; `str(member)` is ARCHIVE/NAME.

    Args:
        archive: the archive's file.
        offset: of the member's first byte in it.
        size: in bytes.
        name: as in the archive.
    """

    archive: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def open(self) -> BinaryIO:
        """Opens the content as a file of its own; only a buffer is read ahead.

        Raises:
            OSError: as `open_regular`; also if the archive is truncated, or has another member at this offset.
        """
        file = open_regular(self.archive)
        try:
            self._check(file)
        except BaseException:
            file.close()
            raise
        return io.BufferedReader(_Window(file, self.offset, self.size), 1 << 16)

    def _check(self, file: BinaryIO) -> None:
        """Labels come from the index and must not be applied to content that has been written since."""
        there = os.fstat(file.fileno()).st_size
        if self.offset + self.size > there:
            raise OSError(
                0, f"expected the member to end at byte {self.offset + self.size:,}, the archive has {there:,}"
            )
        try:
            file.seek(self.offset - BLOCK)
            header = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
        except (tarfile.HeaderError, OSError, ValueError):
            header = None
        short = self.name.isascii() and len(self.name) <= SHORT_NAME
        if (
            header is None
            or not header.isreg()
            or header.size != self.size
            or (short and header.name.removeprefix("./") != self.name)
        ):
            raise OSError(0, "the archive has changed since its index was made: start anew, and it is made again")


class _Window(io.RawIOBase):
    """A part of a file, as a file. Closing it closes the underlying file; it has no `fileno`, which would give access
    to the rest."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self.file, self.start, self.size, self.at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"expected a position of at least 0, got {base + offset}")
        self.at = base + offset
        return self.at

    def readinto(self, buffer: memoryview) -> int:
        wanted = max(0, min(len(buffer), self.size - self.at))
        self.file.seek(self.start + self.at)
        read = self.file.readinto(memoryview(buffer)[:wanted])
        self.at += read
        return read

    def close(self) -> None:
        self.file.close()
        super().close()
