"""Writing images into tar archives: the bytes of their files as they are, and the same archives every time."""

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

from dual_cross_attention.data.images import (
    ImageSource,
    UnreadableImage,
    open_bytes,
    open_image,
)
from dual_cross_attention.data.pixels import upright_rgb
from dual_cross_attention.data.shards.member import BLOCK
from dual_cross_attention.errors import InputError

SUFFIXES = {
    "BMP": "bmp",
    "GIF": "gif",
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG with more images behind it, as some cameras write it: PIL finds out by itself
    "PNG": "png",
    "PPM": "ppm",
    "TIFF": "tif",
    "WEBP": "webp",
}
"""By PIL's format, whatever the file is called: a sample's image is known by its suffix."""
DIGITS = 6  # of the number of an archive and of an image, at least
AT_ONCE = 16  # images that a process is given at a time
AHEAD = 4  # such portions for each process, whose images wait in memory


class Encoded(NamedTuple):
    """An image as it is in its file.

    Args:
        content: the bytes; empty if it cannot be read.
        suffix: of a file name, without a point.
        broken: why it cannot be read; None: it can.
    """

    content: bytes
    suffix: str
    broken: str | None


def encoded(image: ImageSource) -> Encoded:
    """The bytes of an image that can be decoded to its last pixel; one in memory becomes a PNG."""
    try:
        if isinstance(image, Image.Image):
            file = io.BytesIO()
            image.save(file, "PNG")
            return Encoded(file.getvalue(), "png", None)
        with open_image(image) as opened:
            suffix = SUFFIXES[opened.format]
            upright_rgb(opened)
        with open_bytes(image) as file:
            return Encoded(file.read(), suffix, None)
    except UnreadableImage as error:
        return Encoded(b"", "", error.reason)
    except OSError as error:  # it was there a moment ago
        return Encoded(b"", "", error.strerror or f"{error}")


def encode_all(images: Sequence[ImageSource], order: Sequence[int], num_workers: int) -> Iterator[tuple[int, Encoded]]:
    """Each image's number and bytes, in this order; errors as of `encoded`.

    Args:
        num_workers: processes that read and decode; 0: this one.

    Raises:
        InputError: a decoder crashed, and its process with it.
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
    """As long as tarfile makes an archive of so many bytes."""
    return -(-size // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


class ArchiveWriter:
    """Samples into SPLIT-000000.tar, SPLIT-000001.tar, …; an archive has its name once it is whole.

    Args:
        folder: where to.
        split: the name of the split.
        archive_bytes: an archive is closed before it would be larger; one with a single sample may be.

    Attributes:
        archives: the names of those that are whole.
    """

    def __init__(self, folder: Path, split: str, archive_bytes: int):
        self.folder, self.split, self.archive_bytes = folder, split, archive_bytes
        self.archives: list[str] = []
        self.samples = 0

    def write(self, samples: Iterable[dict[str, bytes]]) -> Iterator[int]:
        """Each sample is its members' contents by suffix; gives the number of each once it is written.

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
