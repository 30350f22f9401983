"""Checks every image of a dataset before training: broken or odd images, and duplicates across splits."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dual_cross_attention.data.concat_sequence import ConcatSequence
from dual_cross_attention.data.crops import CroppedFile
from dual_cross_attention.data.images import ImageSource, UnreadableImage, open_bytes, open_image
from dual_cross_attention.data.pixels import upright_rgb
from dual_cross_attention.data.shards.member import Member

TINY = 8
"""Side in pixels below which an image is reported as tiny."""
LARGE = 89_478_485
"""Pixels from which PIL would warn of a decompression bomb; half of what is read at all (`MAX_PIXELS`)."""
FEW = 8
"""Distinct values of a channel; with fewer, it may be a mask, or values of another range than was assumed."""
DARK_BELOW = 32
"""Brightest value of an image below which it is called dark. The most common cause: the 12 bits of a sensor in a 16-bit
file, which does not say so, become 16 levels, 0 to 15; 13 bits become 32."""
CONSTANT, FEW_LEVELS, DARK = "constant", "few levels", "dark"
"""Prefix of findings about such images."""
USUAL_MODES = ("RGB", "L")
AT_ONCE = 16  # images per task of a worker
AHEAD = 64  # tasks per worker before a new pool is started


class Finding(NamedTuple):
    """A finding about an image.

    Args:
        split: in which it is.
        path: the file, exactly as it is named.
        reason: the problem.
    """

    split: str
    path: str
    reason: str


@dataclass
class Split:
    """Statistics of a split.

    Args:
        images: how many.
        classes: classes or identities with an image in it.
        bad: images that cannot be read.
    """

    images: int
    classes: int
    bad: int = 0


@dataclass
class DataReport:
    """Report on a dataset.

    Args:
        splits: by name.
        bad: images that cannot be read.
        odd: suspicious images that can be read: tiny, very large, animated, of an unusual mode, constant,
            with few levels, dark.
        duplicates: files of the same content in more than one split, as lists of (split, path).
        without_test: classes to train on that have no image to test with.
        without_training: classes without an image to train on.
        warnings: of the dataset itself.
    """

    splits: dict[str, Split]
    bad: list[Finding] = field(default_factory=list)
    odd: list[Finding] = field(default_factory=list)
    duplicates: list[list[tuple[str, str]]] = field(default_factory=list)
    without_test: list[str] = field(default_factory=list)
    without_training: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`; findings have names, not positions. "pictures" repeats "images": reports had it before."""
        return asdict(self) | {
            "splits": {name: asdict(split) | {"pictures": split.images} for name, split in self.splits.items()},
            "bad": [finding._asdict() for finding in self.bad],
            "odd": [finding._asdict() for finding in self.odd],
        }


class Look(NamedTuple):
    """Result of checking an image.

    Args:
        broken: why it cannot be read; None: it can.
        odd: findings about an image that can be read.
        digest: of the file's bytes; None for an image in memory, or one that cannot be read.
    """

    broken: str | None
    odd: list[str]
    digest: bytes | None


def look_at(image: ImageSource) -> Look:
    """Opens an image and decodes it to the last pixel."""
    odd: list[str] = []
    try:
        with open_image(image) as opened:
            width, height, mode = opened.width, opened.height, opened.mode
            animated = getattr(opened, "is_animated", False)
            pixels = upright_rgb(opened)
            if isinstance(image, CroppedFile):
                pixels = image.crop(pixels)
                width, height = pixels.size
            levels, brightest = count_levels(pixels), max(high for _, high in pixels.getextrema())
        digest = None if isinstance(image, Image.Image) else _digest(image)
    except UnreadableImage as error:
        return Look(error.reason, odd, None)
    except OSError as error:  # it has disappeared since
        return Look(error.strerror or f"{error}", odd, None)
    if min(width, height) < TINY:
        odd.append(f"tiny: {width}x{height} pixels")
    if width * height > LARGE:
        odd.append(f"very large: {width:,}x{height:,} pixels")
    if animated:
        odd.append("holds several images, of which the first is taken")
    if mode not in USUAL_MODES:
        odd.append(f"mode {mode}, which becomes RGB")
    if levels == 1:
        odd.append(f"{CONSTANT}: all pixels are the same")
    elif levels < FEW:
        odd.append(f"{FEW_LEVELS}: {levels} of 256")
    elif brightest < DARK_BELOW:
        odd.append(f"{DARK}: no value above {brightest} of 255")
    return Look(None, odd, digest)


def count_levels(image: Image.Image) -> int:
    """Number of distinct values in an RGB image, of the channel with the most."""
    histogram = image.histogram()
    return max(sum(count > 0 for count in histogram[first : first + 256]) for first in (0, 256, 512))


def check_images(
    splits: Mapping[str, Sequence[ImageSource]],
    report: DataReport,
    num_workers: int,
    advance: Callable[[], None],
) -> None:
    """Checks all images of all splits, and adds bad images, odd images and duplicates to the report.

    A file that crashes the decoder's process is a bad image.

    Args:
        splits: the images, by the split's name.
        report: the report to extend.
        num_workers: processes; 0: this one.
        advance: called once per image.
    """
    looks: dict[int, Look] = {}
    for number, look in _look_at_all(ConcatSequence(*splits.values()), num_workers):
        looks[number] = look
        advance()
    same: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    named = ((split, image) for split, listed in splits.items() for image in listed)
    for number, (split, image) in enumerate(named):
        broken, odd, digest = looks[number]
        name = f"image {number} in memory" if isinstance(image, Image.Image) else f"{image}"
        if broken:
            report.bad.append(Finding(split, name, broken))
            report.splits[split].bad += 1
        report.odd += [Finding(split, name, reason) for reason in odd]
        if digest:
            same[digest].append((split, name))
    report.duplicates += [files for files in same.values() if len({split for split, _ in files}) > 1]


def processes(num_workers: int | None) -> int:
    """Returns `num_workers`; None: one per core, or 0 (this process) on a single core."""
    if num_workers is not None:
        return num_workers
    cores = os.cpu_count() or 1
    return cores if cores > 1 else 0


def _look_at_all(images: Sequence[ImageSource], num_workers: int) -> Iterator[tuple[int, Look]]:
    """Yields each image's number and result, in any order."""
    if not num_workers:
        for number, image in enumerate(images):
            yield number, look_at(image)
        return
    portions = (range(len(images))[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE))
    crashed: list[int] = []
    while some := list(islice(portions, AHEAD * num_workers)):
        # A crashed process breaks its pool: unfinished images are checked one by one.
        with ProcessPoolExecutor(num_workers) as pool:
            waiting = {}
            for portion in some:
                try:
                    waiting[pool.submit(_look_at_some, [images[number] for number in portion])] = portion
                except BrokenProcessPool:
                    crashed += portion
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    portion = waiting.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        crashed += portion
                    else:
                        yield from zip(portion, future.result(), strict=True)
    for number in crashed:
        with ProcessPoolExecutor(1) as pool:
            try:
                yield number, pool.submit(look_at, images[number]).result()
            except BrokenProcessPool:
                yield number, Look("the decoder crashed on it", [], None)


def _look_at_some(images: list[ImageSource]) -> list[Look]:
    return [look_at(image) for image in images]


def _digest(image: Path | CroppedFile | Member) -> bytes:
    digest = hashlib.blake2b()
    with open_bytes(image) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
