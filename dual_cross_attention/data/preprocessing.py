"""Preprocessing of a trained model: from any image to the tensor that the network reads, as its file records it."""

import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dual_cross_attention.configs.training_config import MAX_SIDE
from dual_cross_attention.data.images import ImageSource, read_image
from dual_cross_attention.data.transforms import Transform, test_transform
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr

INTERPOLATIONS = ("bilinear", "bicubic")
MAX_RESIZE = 2 * MAX_SIDE
"""Sides in a file's header, in pixels; images are resized to somewhat more than the model's input."""


@dataclass(frozen=True)
class Preprocessing:
    """Decode, resize, center crop, normalize. Evaluation, `predict` and `embed` use the same object.

    Calling it with a path, or with a PIL image of any mode, gives a float32 tensor (3, *img_size). A file that cannot
    be read raises `UnreadableImage`.

    Args:
        img_size: (height, width) in pixels of the center crop, the model's input.
        resize: (height, width) in pixels before the crop.
        mean, std: per channel, for pixels in 0..1.
        interpolation: one of `INTERPOLATIONS`, with antialiasing.
        keep_aspect: crop the center of an image to the aspect ratio of `resize` first; otherwise it is not kept.
    """

    img_size: tuple[int, int]
    resize: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    keep_aspect: bool = False

    def __call__(self, image: ImageSource | str) -> Tensor:
        return self.transform(self.read(image))

    def read(self, image: ImageSource | str) -> Image.Image:
        """The decoded image, upright and in RGB; a large JPEG file may be decoded at a fraction of its size."""
        return read_image(Path(image) if isinstance(image, str) else image, self.resize)

    @cached_property
    def transform(self) -> Transform:
        """From a PIL image in RGB to a float32 tensor (3, *img_size)."""
        return test_transform(self.img_size, self.resize, self.mean, self.std, self.interpolation, self.keep_aspect)

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str) -> "Preprocessing":
        """Reads what `to_json` wrote; `source` is where it is from, for errors.

        Raises:
            InputError: invalid content, sizes or numbers.
        """
        try:
            read = json.loads(text)
            img_size, resize = (_sides(read[name]) for name in ("img_size", "resize"))
            mean, std = (tuple(_number(value) for value in read[name]) for name in ("mean", "std"))
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
                raise ValueError(f"mean and std: expected three numbers each, got {short_repr(read)}")
            if read["interpolation"] not in INTERPOLATIONS:
                raise ValueError(f"interpolation: expected one of {', '.join(INTERPOLATIONS)}")
            if resize[0] < img_size[0] or resize[1] < img_size[1]:
                raise ValueError(f"resize {resize} is smaller than img_size {img_size}")
            keep_aspect = read.get("keep_aspect", False)  # not in files of earlier versions
            if type(keep_aspect) is not bool:
                raise ValueError(f"keep_aspect: expected true or false, got {short_repr(keep_aspect)}")
            return cls(img_size, resize, mean, std, read["interpolation"], keep_aspect)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise InputError(f"{source}: preprocessing cannot be read ({type(error).__name__}: {error})") from error


def _sides(value: Any) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value)):
        raise ValueError(f"expected height and width, got {short_repr(value)}")
    if not all(1 <= side <= MAX_RESIZE for side in value):
        raise ValueError(f"expected sides from 1 to {MAX_RESIZE:,} pixels, got {short_repr(value)}")
    return value[0], value[1]


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"expected a number, got {short_repr(value)}")
    return float(value)
