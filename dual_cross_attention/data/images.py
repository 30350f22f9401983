"""Lists of labeled images, and reading untrusted files so that a broken one does not end a run."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from dual_cross_attention.data.crops import CroppedFile
from dual_cross_attention.data.pixels import upright_rgb
from dual_cross_attention.data.row_images import RowImage
from dual_cross_attention.data.shards.member import Member
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import open_regular

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""PIL's formats that are read, whatever the file is called: those of `folders.EXTENSIONS`. PIL would pass others to
external programs (EPS to Ghostscript), which must not get untrusted files."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of one."""
MAX_PIXELS = 178_956_970
"""Largest image: 0.5 GB in RGB; beyond, PIL reports a decompression bomb (twice Image.MAX_IMAGE_PIXELS)."""
MAX_BYTES = 2 * 2**30
"""Largest file: more than MAX_PIXELS need without compression. Some decoders of PIL read the whole file first."""
# PIL warns between half of MAX_PIXELS and MAX_PIXELS; the limit is checked here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

ImageSource = Path | CroppedFile | Member | RowImage | Image.Image
"""A file, a crop of one, a member of a tar archive, an image in a row of a table, or one in memory."""


@dataclass(frozen=True)
class ImageList:
    """Images, as files or as PIL images, and the class of each.

    Args:
        images: files, archive members, rows of a table, or PIL images.
        labels: (images,) class indices from 0.
        block: number of images that are shuffled at a time, see `ShuffledBatchSampler`; None: all.
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
    """A file is missing or cannot be decoded; the message is "path: reason" in one line.

    Args:
        path: the file, exactly as it is named.
        reason: why.
    """

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)  # both, so that it can be pickled
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{escape(self.path)}: {self.reason}"


def open_bytes(image: Path | CroppedFile | Member | RowImage) -> BinaryIO:
    """The bytes of an image, as a file; of a crop, those of the whole. Errors as of `open_regular`, `Member.open`."""
    if isinstance(image, Member | RowImage):
        return image.open()
    return open_regular(image.path if isinstance(image, CroppedFile) else image)


@contextmanager
def open_image(image: ImageSource) -> Iterator[Image.Image]:
    """Opens an image and reads its header only: nothing large is allocated. Of a crop, it is the whole image.

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
    except Exception as error:  # decoders raise any type on damaged bytes
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
        if isinstance(image, CroppedFile):  # the box is in pixels of the full size
            return image.crop(upright_rgb(opened))
        if size and not isinstance(image, Image.Image):
            _decode_smaller(opened, size)
        return upright_rgb(opened)


def _opened(file: BinaryIO) -> Image.Image:
    """Opens an image with PIL; for a TIFF with an unsupported pixel type, raises an error that names the reason."""
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
    """Refuses truncated files, even if another library has set PIL's LOAD_TRUNCATED_IMAGES."""
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
    if opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # stored rotated
        height, width = width, height
    for factor in (8, 4, 2):
        smaller = opened.width // factor, opened.height // factor
        divides = (smaller[0] * factor, smaller[1] * factor) == opened.size
        if divides and smaller[0] >= 2 * width and smaller[1] >= 2 * height:
            opened.draft(None, smaller)
            return
