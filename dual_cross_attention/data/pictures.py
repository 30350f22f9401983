"""Lists of labelled pictures, and reading them so that one broken file does not end a run of many hours."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

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


def read_picture(picture: Path | Image.Image) -> Image.Image:
    """A picture from disk (or memory), upright and in RGB.

    EXIF orientation is applied, what is transparent becomes white, 16-bit grey keeps its upper 8 bits.

    Raises:
        UnreadablePicture: it cannot be decoded.
    """
    try:
        if isinstance(picture, Image.Image):
            return _upright_rgb(picture)
        with Image.open(picture) as opened:
            return _upright_rgb(opened)
    except Exception as error:  # what decoders raise on damaged bytes is not limited to any list of types
        reason = getattr(error, "strerror", None) or f"{error}" or type(error).__name__
        name = "a picture in memory" if isinstance(picture, Image.Image) else f"{picture}"
        raise UnreadablePicture(" ".join(f"{name}: {reason}".split())) from error


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
        transform: takes a PIL image in RGB, returns a float tensor (3, H, W); may draw from torch's generator.
        training: whether an unreadable picture is replaced (True) or marked (False).
        seed: of the augmentation.
    """

    def __init__(
        self, picture_list: PictureList, transform: Callable[[Image.Image], Tensor], training: bool, seed: int = 0
    ):
        self.picture_list = picture_list
        self.transform = transform
        self.training = training
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change

    def set_epoch(self, epoch: int) -> None:
        """Augment as in this epoch, in this process and in its workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.picture_list)

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
                picture = read_picture(self.picture_list.pictures[position])
            except UnreadablePicture as error:
                unreadable.append(f"{error}")
                continue
            label = int(self.picture_list.labels[position])
            with _seeded(self.seed, int(self._epoch), index):
                return {"image": self.transform(picture), "label": label, "unreadable": unreadable}
        if self.training:
            raise InputError(f"none of the {len(self)} training pictures can be read; the first: {unreadable[0]}")
        blank = self.transform(Image.new("RGB", (8, 8)))  # through the transform: only it knows the size
        return {"image": torch.zeros_like(blank), "label": UNREADABLE, "unreadable": unreadable}


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
        "images": torch.stack([sample["image"] for sample in samples]),
        "labels": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
        "unreadable": [message for sample in samples for message in sample["unreadable"]],
    }
