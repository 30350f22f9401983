"""Transforms from a PIL image to a backbone's input in two steps: `resize` (deterministic) and `augment` (may be
random).

Images are resized as uint8 tensors. Measured on one core of an AMD EPYC, 500×375 → 550×550 → crop 448×448, whole
pipeline: 2.6 ms, against 5.8 ms when PIL resizes and 6.6 ms when the tensor is made float first; the pixels differ
from PIL's by at most 2 of 255.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.transforms import v2

from dual_cross_attention.data.augmentation import extra_augmentation, resize_steps
from dual_cross_attention.errors import InputError


class Transform(v2.Compose):
    """Resizes an image, then does the steps of `augment`; the half-way result can be kept (`cache.py`).

    Args:
        size: (height, width) in pixels that images are resized to.
        augment: steps from uint8 (3, *size) to float (3, height, width); they change nothing in place.
        interpolation: of the resize, with antialiasing: "bilinear" or "bicubic".
        keep_aspect: crop images to the aspect ratio of `size` first; otherwise it is not kept.

    Attributes:
        size: as given.
        resize: from a PIL image in RGB to uint8 (3, *size); draws nothing.
        augment: the rest, which may draw from torch's generator.
    """

    def __init__(
        self,
        size: tuple[int, int],
        augment: Sequence[nn.Module],
        interpolation: str = "bicubic",
        keep_aspect: bool = False,
    ):
        resize = resize_steps(size, v2.InterpolationMode(interpolation), keep_aspect)
        super().__init__([*resize, *augment])
        self.size = size
        self.resize = v2.Compose(resize)
        self.augment = v2.Compose(augment)


def train_transform(
    img_size: tuple[int, int],
    resize: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    flip: float = 0.5,
    color_jitter: float = 0.0,
    auto_augment: str | None = None,
    interpolation: str = "bicubic",
    keep_aspect: bool = False,
) -> Transform:
    """Resize, random crop, random horizontal flip, further augmentation, normalize.

    Source: DCAL (arXiv 2205.02151), section 4.1, which has no further augmentation.

    Args:
        img_size: (height, width) in pixels of what comes out.
        resize: (height, width) in pixels before cropping.
        mean, std: per channel, for pixels in 0..1.
        flip: probability of a horizontal flip.
        color_jitter, auto_augment: see `extra_augmentation`; none by default.
        interpolation, keep_aspect: of the resize, see `Transform`.

    Returns:
        A transform from a PIL image in RGB to a float tensor (3, *img_size).

    Raises:
        InputError: `resize` is smaller than `img_size`, `flip` is not a probability, or timm has no such policy.
    """
    if not 0 <= flip <= 1:
        raise InputError(f"flip is a probability, from 0 to 1; got {flip}")
    _check_crop(img_size, resize)
    further = extra_augmentation(color_jitter, auto_augment, img_size, mean, interpolation)
    steps = [v2.RandomCrop(img_size), v2.RandomHorizontalFlip(flip), *further, *_normalized(mean, std)]
    return Transform(resize, steps, interpolation, keep_aspect)


def test_transform(
    img_size: tuple[int, int],
    resize: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    keep_aspect: bool = False,
) -> Transform:
    """Resize, center crop, normalize. Other arguments, result and errors as in `train_transform`."""
    _check_crop(img_size, resize)
    return Transform(resize, [v2.CenterCrop(img_size), *_normalized(mean, std)], interpolation, keep_aspect)


test_transform.__test__ = False  # pytest takes it for a test wherever it is imported


def _check_crop(img_size: tuple[int, int], resize: tuple[int, int]) -> None:
    if resize[0] < img_size[0] or resize[1] < img_size[1]:
        raise InputError(
            f"images are resized to {resize[0]}×{resize[1]} and then cropped to {img_size[0]}×{img_size[1]} "
            "(height×width), so resize must be at least img_size"
        )


def _normalized(mean: Sequence[float], std: Sequence[float]) -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std), inplace=True)]


def reid_train_transform(
    img_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    flip: float = 0.5,
    padding: int = 10,
    erasing: float = 0.5,
    color_jitter: float = 0.0,
    auto_augment: str | None = None,
    interpolation: str = "bicubic",
    keep_aspect: bool = False,
) -> Transform:
    """Resize, random horizontal flip, pad and random crop, further augmentation, normalize, random erasing.

    Source: TransReID (arXiv 2102.04378), section 4.2, whose recipe DCAL takes. Erased rectangles have 2 to 33 % of the
    area and are filled with normal noise per pixel.

    Args:
        img_size: (height, width) in pixels of what comes out.
        mean, std: per channel, for pixels in 0..1.
        flip, erasing: probabilities.
        padding: pixels of black on every side before the crop.
        color_jitter, auto_augment, interpolation, keep_aspect: as in `train_transform`.

    Returns:
        A transform from a PIL image in RGB to a float tensor (3, *img_size).

    Raises:
        InputError: `flip` or `erasing` is not a probability, `padding` is negative, or timm has no such policy.
    """
    for name, value in (("flip", flip), ("erasing", erasing)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} is a probability, from 0 to 1; got {value}")
    if padding < 0:
        raise InputError(f"padding is a number of pixels, at least 0; got {padding}")
    return Transform(
        img_size,
        [
            v2.RandomHorizontalFlip(flip),
            v2.RandomCrop(img_size, padding=padding),
            *extra_augmentation(color_jitter, auto_augment, img_size, mean, interpolation),
            *_normalized(mean, std),
            v2.RandomErasing(erasing, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random"),
        ],
        interpolation,
        keep_aspect,
    )
