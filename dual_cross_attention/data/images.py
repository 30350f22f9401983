"""Lists of labelled images, and reading them so that one broken file does not end a run of many hours."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dual_cross_attention.data.cache import ImageCache
from dual_cross_attention.data.pixels import upright_rgb
from dual_cross_attention.data.shards.member import Member
from dual_cross_attention.data.transforms import Transform
from dual_cross_attention.data.unreadable import Unreadable
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import open_regular

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""PIL's formats that are read, whatever the file is called: those of `folders.EXTENSIONS`. Others PIL would hand to
programs of the system (EPS to Ghostscript), which is no place for a untrusted file."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of one."""
MAX_PIXELS = 178_956_970
"""Of an image: 0.5 GB in RGB, and what PIL takes for a decompression bomb beyond (twice Image.MAX_IMAGE_PIXELS)."""
MAX_BYTES = 2 * 2**30
"""Of a file: more than MAX_PIXELS take without compression. Some of PIL's decoders read all of it first."""
MAX_IN_A_ROW = 1000
"""Unreadable training images, one after the other, after which the dataset is given up."""
# Between half of MAX_PIXELS and all of it, PIL warns; what is too large is decided here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

ImageSource = Path | Member | Image.Image
"""A file, a member of a tar archive, or an image in memory."""

UNREADABLE = -1
"""The label of a test image that could not be read; metrics leave it out."""


@dataclass(frozen=True)
class ImageList:
    """Images, as files or as PIL images, and the class of each.

    Args:
        images: where to read them, or the images themselves.
        labels: class indices from 0, as many as images.
        block: how many to shuffle at a time, see `ShuffledOrder`; None: all.
    """

    images: Sequence[ImageSource]
    labels: Sequence[int]
    block: int | None = None

    def __post_init__(self):
        if len(self.images) != len(self.labels):
            raise ValueError(f"expected a label for each image, got {len(self.images)} and {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.images)


class UnreadableImage(Exception):
    """A file is missing, or holds no image that can be decoded; the message is "path: reason", in a line.

    Args:
        path: the file, exactly as it is named.
        reason: why.
    """

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)  # both, or it could not be sent between processes
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{escape(self.path)}: {self.reason}"


def open_bytes(image: Path | Member) -> BinaryIO:
    """The bytes of an image, as a file; errors as of `open_regular` and `Member.open`."""
    return image.open() if isinstance(image, Member) else open_regular(image)


@contextmanager
def open_image(image: ImageSource) -> Iterator[Image.Image]:
    """An image whose header is read and whose pixels are not yet: nothing large is allocated.

    Whatever is raised inside, by PIL while it decodes, also becomes the error below.

    Raises:
        UnreadableImage: it is no regular file, none of `FORMATS`, too large (`MAX_PIXELS`, `MAX_BYTES`), or damaged.
    """
    try:
        if isinstance(image, Image.Image):
            yield image
            return
        with _whole_images_only(), open_bytes(image) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if size > MAX_BYTES:
                raise ValueError(f"expected a file of at most {MAX_BYTES:,} bytes, got {size:,}")
            if not size:
                raise ValueError("the file is empty")
            with _opened(file) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise ValueError(
                        f"expected at most {MAX_PIXELS:,} pixels, got {opened.width:,} x {opened.height:,}: if it is "
                        "no decompression bomb, make it smaller"
                    )
                yield opened
    except Exception as error:  # what decoders raise on damaged bytes is not limited to any list of types
        name = "an image in memory" if isinstance(image, Image.Image) else f"{image}"
        raise UnreadableImage(name, _reason(error)) from error


def read_image(image: ImageSource, size: tuple[int, int] | None = None) -> Image.Image:
    """An image from disk (or memory), upright and in RGB.

    EXIF orientation is applied; what becomes of other pixels than 8-bit ones, see `pixels.upright_rgb`; of an animation
    it is the first frame.

    Args:
        image: where it is, or the image itself.
        size: (height, width) in pixels that it will be resized to: a JPEG file much larger than that may come out
            smaller than it is, and still at least twice as large. None: as large as it is.

    Raises:
        UnreadableImage: it cannot be opened (see `open_image`), or not be decoded to its end, or its values have a
            range that is not known.
    """
    with open_image(image) as opened:
        if size and not isinstance(image, Image.Image):
            _decode_smaller(opened, size)
        return upright_rgb(opened)


def _opened(file: BinaryIO) -> Image.Image:
    """As PIL opens it; of a TIFF whose pixels it does not read, the error says so. PIL itself takes it for no image."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(4) in TIFF:
            file.seek(0)
            try:
                TiffImagePlugin.TiffImageFile(file)
            except SyntaxError as error:
                if "pixel mode" in f"{error}":
                    raise ValueError(
                        "it is a TIFF with pixels of a type that is not read, such as numbers of 64 bits or several "
                        "channels of 32: convert it to 8 bits"
                    ) from error
        raise


@contextmanager
def _whole_images_only() -> Iterator[None]:
    """A file that ends too early is refused, even where another library has told PIL to fill the rest with gray."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # PIL's own names an object in memory
        return f"it is no image of {', '.join(FORMATS)}"
    reason = getattr(error, "strerror", None) or f"{error}" or type(error).__name__
    return escape(" ".join(f"{reason}".split()))


def _decode_smaller(opened: Image.Image, size: tuple[int, int]) -> None:
    """Has a JPEG decoded at 1/8, 1/4 or 1/2 of its size, whichever leaves twice `size` first; no other format changes.

    Twice: measured with tiled and upscaled photographs of 2400×2400 to 5000×5000 pixels, resized to 550×550, that
    takes a half to a fifth of the time (4000×3000: 106 → 37 ms) and changes pixels by 0.2 to 1.0 of 255 in the mean.
    Once takes little less, and changes them by up to 8. Sides that the factor does not divide would be rounded up,
    which moves the image by a fraction of a pixel (up to 6 of 255), so these are decoded whole.
    """
    height, width = size
    if opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # lies on its side in the file
        height, width = width, height
    for factor in (8, 4, 2):
        smaller = opened.width // factor, opened.height // factor
        divides = (smaller[0] * factor, smaller[1] * factor) == opened.size
        if divides and smaller[0] >= 2 * width and smaller[1] >= 2 * height:
            opened.draft(None, smaller)
            return


class ImageDataset(Dataset):
    """Images read, transformed, and paired with their labels.

    An image that cannot be read is replaced in training by the next one in the list that can. In evaluation it becomes
    a blank image with the label `UNREADABLE`, since a substitute would be counted twice.

    What the transform draws depends on seed, epoch and image only: neither the number of workers nor an interruption
    changes the images that a run sees.

    Args:
        image_list: what to read.
        transform: from a PIL image in RGB to a float tensor (3, H, W).
        training: whether an unreadable image is replaced (True) or marked (False).
        seed: of the augmentation.
        cache: keeps what was read and resized, of as many images; None: all is read every time.
    """

    def __init__(
        self,
        image_list: ImageList,
        transform: Transform,
        training: bool,
        seed: int = 0,
        cache: ImageCache | None = None,
    ):
        self.image_list = image_list
        self.transform = transform
        self.training = training
        self.seed = seed
        self.cache = cache
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change

    def set_epoch(self, epoch: int) -> None:
        """Augment as in this epoch, in this process and in its workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.image_list)

    def name(self, index: int) -> str:
        """What image `index` is called in messages: its path, or its number if it is in memory."""
        position = index % len(self)
        image = self.image_list.images[position]
        return f"image {position}" if isinstance(image, Image.Image) else f"{image}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The image at `index`.

        Returns:
            image (3, H, W) float, label int, and unreadable: an `Unreadable` for each image that failed.

        Raises:
            InputError: in training, when no image of the list can be read, or none of `MAX_IN_A_ROW` that follow
                each other in it: a batch that looks for readable ones among 100,000 broken ones would never come.
        """
        unreadable: list[Unreadable] = []
        for offset in range(min(len(self), MAX_IN_A_ROW) if self.training else 1):
            position = (index + offset) % len(self)
            try:
                pixels = self.cache.get(position, self._read) if self.cache else self._read(position)
            except UnreadableImage as error:
                unreadable.append(Unreadable(error.path, error.reason, self.training))
                continue
            label = int(self.image_list.labels[position])
            with _seeded(self.seed, int(self._epoch), index):
                return {"image": self.transform.augment(pixels), "label": label, "unreadable": unreadable}
        if self.training:
            first = f"{escape(unreadable[0].path)}: {unreadable[0].reason}"
            if len(unreadable) < len(self):
                raise InputError(
                    f"{len(unreadable):,} of the {len(self):,} training images, one after the other, cannot be read; "
                    f"`dcal check-data` lists all that cannot; the first: {first}"
                )
            raise InputError(f"none of the {len(self)} training images can be read; the first: {first}")
        blank = self.transform(Image.new("RGB", (8, 8)))  # through the transform: only it knows the size
        return {"image": torch.zeros_like(blank), "label": UNREADABLE, "unreadable": unreadable}

    def _read(self, position: int) -> Tensor:
        """uint8 (3, *transform.size); raises UnreadableImage."""
        image = read_image(self.image_list.images[position], self.transform.size)
        return self.transform.resize(image)


@contextmanager
def _seeded(*entropy: int) -> Iterator[None]:
    """torch's CPU generator is seeded by the numbers inside, and is as it was after."""
    before = torch.get_rng_state()
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    torch.default_generator.manual_seed(int(seed >> np.uint64(1)))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples of `ImageDataset` → images (B, 3, H, W), labels (B,) int64, unreadable: list of `Unreadable`."""
    return {
        # In a worker PyTorch's own stacks into shared memory at once, where sending would else copy it.
        "images": default_collate([sample["image"] for sample in samples]),
        "labels": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
        "unreadable": [image for sample in samples for image in sample["unreadable"]],
    }
