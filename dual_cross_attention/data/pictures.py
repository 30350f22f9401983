"""Lists of labelled pictures, and reading them so that one broken file does not end a run of many hours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dual_cross_attention.data.cache import PictureCache
from dual_cross_attention.data.transforms import Transform
from dual_cross_attention.errors import InputError

UNREADABLE = -1
"""The label of a test picture that could not be read; metrics leave it out."""


@dataclass(frozen=True)
class PictureList:
    """Pictures, as paths or as PIL images, and the class of each.

    Args:
        pictures: where to read them, or the pictures themselves.
        labels: class indices from 0, as many as pictures.
    """

    pictures: Sequence[Path | Image.Image]
    labels: Sequence[int]

    def __post_init__(self):
        if len(self.pictures) != len(self.labels):
            raise ValueError(f"expected a label for each picture, got {len(self.pictures)} and {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.pictures)


class UnreadablePicture(Exception):
    """A file is missing, or holds no picture that can be decoded; the message is "path: reason"."""


def read_picture(picture: Path | Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
    """A picture from disk (or memory), upright and in RGB.

    EXIF orientation is applied, what is transparent becomes white, 16-bit grey keeps its upper 8 bits.

    Args:
        picture: where it is, or the picture itself.
        size: (height, width) in pixels that it will be resized to: a JPEG file much larger than that may come out
            smaller than it is, and still at least twice as large. None: as large as it is.

    Raises:
        UnreadablePicture: it cannot be decoded.
    """
    try:
        if isinstance(picture, Image.Image):
            return _upright_rgb(picture)
        with Image.open(picture) as opened:
            if size:
                _decode_smaller(opened, size)
            return _upright_rgb(opened)
    except Exception as error:  # what decoders raise on damaged bytes is not limited to any list of types
        reason = getattr(error, "strerror", None) or f"{error}" or type(error).__name__
        name = "a picture in memory" if isinstance(picture, Image.Image) else f"{picture}"
        raise UnreadablePicture(" ".join(f"{name}: {reason}".split())) from error


def _decode_smaller(opened: Image.Image, size: tuple[int, int]) -> None:
    """Has a JPEG decoded at 1/8, 1/4 or 1/2 of its size, whichever leaves twice `size` first; no other format changes.

    Twice: measured with tiled and upscaled photographs of 2400×2400 to 5000×5000 pixels, resized to 550×550, that
    takes a half to a fifth of the time (4000×3000: 106 → 37 ms) and changes pixels by 0.2 to 1.0 of 255 in the mean.
    Once takes little less, and changes them by up to 8. Sides that the factor does not divide would be rounded up,
    which moves the picture by a fraction of a pixel (up to 6 of 255), so these are decoded whole.
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


def _upright_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # PIL would clip 16 bits at 255
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


class PictureDataset(Dataset):
    """Pictures read, transformed, and paired with their labels.

    A picture that cannot be read is replaced in training by the next one in the list that can. In evaluation it becomes
    a blank image with the label `UNREADABLE`, since a substitute would be counted twice.

    What the transform draws depends on seed, epoch and picture only: neither the number of workers nor an interruption
    changes the pictures that a run sees.

    Args:
        picture_list: what to read.
        transform: from a PIL image in RGB to a float tensor (3, H, W).
        training: whether an unreadable picture is replaced (True) or marked (False).
        seed: of the augmentation.
        cache: keeps what was read and resized, of as many pictures; None: all is read every time.
    """

    def __init__(
        self,
        picture_list: PictureList,
        transform: Transform,
        training: bool,
        seed: int = 0,
        cache: PictureCache | None = None,
    ):
        self.picture_list = picture_list
        self.transform = transform
        self.training = training
        self.seed = seed
        self.cache = cache
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change

    def set_epoch(self, epoch: int) -> None:
        """Augment as in this epoch, in this process and in its workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.picture_list)

    def name(self, index: int) -> str:
        """What picture `index` is called in messages: its path, or its number if it is in memory."""
        position = index % len(self)
        picture = self.picture_list.pictures[position]
        return f"picture {position}" if isinstance(picture, Image.Image) else f"{picture}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The picture at `index`.

        Returns:
            image (3, H, W) float, label int, and unreadable: a "path: reason" for each picture that failed.

        Raises:
            InputError: in training, when no picture of the whole list can be read.
        """
        unreadable: list[str] = []
        for offset in range(len(self) if self.training else 1):
            position = (index + offset) % len(self)
            try:
                pixels = self.cache.get(position, self._read) if self.cache else self._read(position)
            except UnreadablePicture as error:
                unreadable.append(f"{error}")
                continue
            label = int(self.picture_list.labels[position])
            with _seeded(self.seed, int(self._epoch), index):
                return {"image": self.transform.augment(pixels), "label": label, "unreadable": unreadable}
        if self.training:
            raise InputError(f"none of the {len(self)} training pictures can be read; the first: {unreadable[0]}")
        blank = self.transform(Image.new("RGB", (8, 8)))  # through the transform: only it knows the size
        return {"image": torch.zeros_like(blank), "label": UNREADABLE, "unreadable": unreadable}

    def _read(self, position: int) -> Tensor:
        """uint8 (3, *transform.size); raises UnreadablePicture."""
        picture = read_picture(self.picture_list.pictures[position], self.transform.size)
        return self.transform.resize(picture)


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
    """Samples of `PictureDataset` → images (B, 3, H, W), labels (B,) int64, unreadable: list of str."""
    return {
        # In a reading process PyTorch's own stacks into shared memory at once, where sending would else copy it.
        "images": default_collate([sample["image"] for sample in samples]),
        "labels": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
        "unreadable": [message for sample in samples for message in sample["unreadable"]],
    }
