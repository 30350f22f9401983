"""Writes images into tar archives: files are copied byte for byte, and the archives are reproducible."""

import io
import os
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dual_cross_attention.data.crops import CroppedFile
from dual_cross_attention.data.images import (
    ImageSource,
    UnreadableImage,
    open_bytes,
    open_image,
    read_image,
)
from dual_cross_attention.data.pixels import upright_rgb
from dual_cross_attention.data.shards.member import BLOCK
from dual_cross_attention.errors import InputError

SUFFIXES = {
    "BMP": "bmp",
    "GIF": "gif",
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG file with several images, as some cameras write it; PIL detects it
    "PNG": "png",
    "PPM": "ppm",
    "TIFF": "tif",
    "WEBP": "webp",
}
"""Suffix by PIL's format, not by the file's name: readers recognize a sample's image by its suffix."""
DIGITS = 6  # least number of digits in the number of an archive or image
AT_ONCE = 16  # images per task of a worker
AHEAD = 4  # prefetched tasks per worker


class Encoded(NamedTuple):
    """The encoded bytes of an image.

    Args:
        content: the bytes; empty if it cannot be read.
        suffix: of a file name, without the dot.
        broken: why it cannot be read; None: it can.
    """

    content: bytes
    suffix: str
    broken: str | None


def encoded(image: ImageSource) -> Encoded:
    """Returns the bytes of an image after a complete decode as a check. Crops and images in memory become PNG."""
    try:
        if isinstance(image, Image.Image | CroppedFile):
            file = io.BytesIO()
            (read_image(image) if isinstance(image, CroppedFile) else image).save(file, "PNG")
            return Encoded(file.getvalue(), "png", None)
        with open_image(image) as opened:
            suffix = SUFFIXES[opened.format]
            upright_rgb(opened)
        with open_bytes(image) as file:
            return Encoded(file.read(), suffix, None)
    except UnreadableImage as error:
        return Encoded(b"", "", error.reason)
    except OSError as error:  # it has disappeared since
        return Encoded(b"", "", error.strerror or f"{error}")


def encode_all(images: Sequence[ImageSource], order: Sequence[int], num_workers: int) -> Iterator[tuple[int, Encoded]]:
    """Yields each image's number and bytes in this order; errors as in `encoded`.

    Args:
        num_workers: worker processes that read and decode; 0: this process.

    Raises:
        InputError: a decoder crashed its process.
    """
    if not num_workers:
        for number in order:
            yield int(number), encoded(images[int(number)])
        return
    try:
        with ProcessPoolExecutor(num_workers) as pool:
            waiting: deque[tuple[list[int], Future]] = deque()
            for start in range(0, len(order), AT_ONCE):
                portion = [int(number) for number in order[start : start + AT_ONCE]]
                waiting.append((portion, pool.submit(_encode_some, [images[number] for number in portion])))
                if len(waiting) == AHEAD * num_workers:
                    yield from _done(*waiting.popleft())
            while waiting:
                yield from _done(*waiting.popleft())
    except BrokenProcessPool as error:
        raise InputError(
            "a process that reads images has died: one of them crashes its decoder, or memory is short; `dcal "
            "check-data` finds such images: remove them, and begin again"
        ) from error


def _encode_some(images: list[ImageSource]) -> list[Encoded]:
    return [encoded(image) for image in images]


def _done(portion: list[int], future: Future) -> Iterator[tuple[int, Encoded]]:
    return zip(portion, future.result(), strict=True)


def _filled_up(size: int) -> int:
    """Size of an archive after tarfile's padding."""
    return -(-size // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


class ArchiveWriter:
    """Writes samples to SPLIT-000000.tar, SPLIT-000001.tar, …; each archive is written atomically.

    Args:
        folder: of the archives.
        split: the name of the split.
        archive_bytes: largest size of an archive, unless a single sample is larger.

    Attributes:
        archives: names of the finished archives.
    """

    def __init__(self, folder: Path, split: str, archive_bytes: int):
        self.folder, self.split, self.archive_bytes = folder, split, archive_bytes
        self.archives: list[str] = []
        self.samples = 0

    def write(self, samples: Iterable[dict[str, bytes]]) -> Iterator[int]:
        """Writes samples, given as member contents by suffix; yields the number of each written sample.

        Raises:
            OSError: the disk is full, for instance.
        """
        archive, size = None, 0
        try:
            for sample in samples:
                needed = sum(BLOCK - (-len(content) // BLOCK) * BLOCK for content in sample.values())
                if archive is not None and _filled_up(size + needed) > self.archive_bytes:
                    self._finish(archive)
                    archive = None
                if archive is None:
                    archive, size = self._begin(), 2 * BLOCK
                for suffix, content in sample.items():
                    member = tarfile.TarInfo(f"{self.samples:0{DIGITS}d}.{suffix}")  # time, owner and group are 0
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                size += needed
                self.samples += 1
                yield self.samples - 1
            if archive is not None:
                self._finish(archive)
                archive = None
        finally:
            if archive is not None:
                archive.fileobj.close()
                self._temporary.unlink(missing_ok=True)

    @property
    def _temporary(self) -> Path:
        return self.folder / f"{self._name}.tmp"

    @property
    def _name(self) -> str:
        return f"{self.split}-{len(self.archives):0{DIGITS}d}.tar"

    def _begin(self) -> tarfile.TarFile:
        return tarfile.TarFile(fileobj=self._temporary.open("wb"), mode="w", format=tarfile.USTAR_FORMAT)

    def _finish(self, archive: tarfile.TarFile) -> None:
        file = archive.fileobj
        archive.close()
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(self._temporary, self.folder / self._name)
        self.archives.append(self._name)
