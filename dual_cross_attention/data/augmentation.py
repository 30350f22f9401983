"""Augmentations beside crop, flip and erasing: color jitter and timm's learned and random policies."""

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr

POLICIES = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
"""By the first word of timm's name; any other one is a policy of AutoAugment."""
SECTION = re.compile(r"(?!t)[a-z]+\d+(\.\d+)?|t(weights|3a|3aw)")
"""A further part of timm's name, such as m9 or mstd0.5; timm skips what it cannot read."""
LARGEST = {"n": 100, "w": 100, "d": 100, "p": 1}
"""Of numbers in sections: operations, chains, their depth, a probability; of others, `LARGEST_OTHER`."""
LARGEST_OTHER = 1000
PIL_INTERPOLATIONS = {"bilinear": 2, "bicubic": 3}


class AutoAugment(nn.Module):
    """One of timm's augmentation policies for uint8 images (3, H, W): RandAugment, AugMix or AutoAugment.

    timm draws from the generators of Python and NumPy. These are seeded from torch's for the call, and restored after
    it, so the result depends on torch's generator alone.

    Args:
        policy: timm's name, such as "rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original-mstd0.5" or "3a".
        size: (height, width) in pixels of the images; translations are at most 45 % of the shorter side.
        mean: of the pixels in 0..1, per channel: the color of what moves into an image.
        interpolation: of rotations and the like, "bilinear" or "bicubic".

    Raises:
        InputError: timm does not know the policy.
    """

    def __init__(self, policy: str, size: tuple[int, int], mean: Sequence[float], interpolation: str = "bicubic"):
        super().__init__()
        name, *sections = policy.split("-")
        options = {
            "translate_const": int(0.45 * min(size)),
            "img_mean": tuple(min(255, round(255 * value)) for value in mean),
            "interpolation": PIL_INTERPOLATIONS[interpolation],
        }
        try:
            if wrong := [section for section in sections if not SECTION.fullmatch(section)]:
                raise ValueError(f"'{wrong[0]}' is no section of a policy")
            for section in sections:
                _check_number(section)
            self.augment = POLICIES.get(name, auto_augment_transform)(policy, options)
        except Exception as error:  # timm asserts, or fails where it looks a name up
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"auto_augment: expected timm's name of a policy, such as rand-m9-mstd0.5-inc1, augmix-m3-w3, original "
                f"or 3a; got {short_repr(policy)} ({reason})"
            ) from error

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) → uint8 (3, H, W)."""
        with _seeded_elsewhere(int(torch.randint(2**31, ()))):
            return F.pil_to_tensor(self.augment(F.to_pil_image(image)))


def _check_number(section: str) -> None:
    """Raises ValueError for a number that timm would take, and that makes no augmentation, such as n9999999."""
    kind, number, _ = re.split(r"(\d[\d.]*|$)", section, maxsplit=1)
    if number and kind != "t" and float(number) > LARGEST.get(kind, LARGEST_OTHER):
        raise ValueError(f"'{section}' is more than {kind}{LARGEST.get(kind, LARGEST_OTHER)}")


@contextmanager
def _seeded_elsewhere(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python and NumPy within the context, and restores them after."""
    before, before_of_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_of_numpy)


def extra_augmentation(
    color_jitter: float, auto_augment: str | None, size: tuple[int, int], mean: Sequence[float], interpolation: str
) -> list[nn.Module]:
    """Steps on uint8 images of `size`: none, color jitter, a policy, or both in this order.

    Args:
        color_jitter: brightness, contrast and saturation are scaled by factors from 1 − this to 1 + this, as in timm.
        auto_augment, size, mean, interpolation: see `AutoAugment`; None: no policy.

    Raises:
        InputError: timm does not know the policy.
    """
    steps: list[nn.Module] = [v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []
    return steps + ([AutoAugment(auto_augment, size, mean, interpolation)] if auto_augment else [])


class CropToAspect(nn.Module):
    """Crops the center of an image (3, H, W) to an aspect ratio, so that a resize does not distort it.

    Args:
        size: (height, width) whose ratio the result has, up to a pixel.
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        """(3, H, W) → the largest centered (3, H', W') of the ratio."""
        return F.center_crop(image, self.kept(image.shape[-2], image.shape[-1]))

    def kept(self, height: int, width: int) -> list[int]:
        """Height and width of what is left of an image, in pixels."""
        scale = min(height / self.size[0], width / self.size[1])
        return [max(1, round(scale * side)) for side in self.size]


def resize_steps(size: tuple[int, int], interpolation: InterpolationMode, keep_aspect: bool) -> list[nn.Module]:
    """From a PIL image in RGB to uint8 (3, *size).

    Args:
        interpolation: with antialiasing.
        keep_aspect: crop to the aspect ratio of `size` first; otherwise the image is distorted.
    """
    crop = [CropToAspect(size)] if keep_aspect else []
    return [v2.PILToTensor(), *crop, v2.Resize(size, interpolation, antialias=True)]
