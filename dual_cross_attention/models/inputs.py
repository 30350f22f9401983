"""Images given to `predict` and `embed`, checked before the network sees them.

Shapes, types and devices are read everywhere; values only in CPU memory, where that waits for no device, and not where
`torch.compile` or `torch.export` trace.
"""

import logging
import math
from typing import Any

import torch
from torch import Tensor

from dual_cross_attention.errors import InputError

logger = logging.getLogger(__name__)

LARGEST_NORMALIZED = 30.0
"""Normalized pixels are within a few units of 0; beyond this they are taken for pixels of 0 ... 255."""


def check_images(backbone: Any, images: Tensor, patch_size: tuple[int, int]) -> None:
    """Checks that `images` is a normalized float batch (B, C, H, W) of the backbone's input size; B may be 0.

    A warning is logged for values that look like pixels of 0 ... 255, in CPU memory only.

    Args:
        backbone: a timm model with a `patch_embed`.
        patch_size: (height, width) in pixels.

    Raises:
        InputError: another type, rank, number of channels, size, dtype or device, or (in CPU memory) values that are
            not finite; the message says how to convert.
    """
    patches = backbone.patch_embed
    channels, weight = backbone.in_chans, next(patches.parameters())
    size = tuple(patches.img_size) if patches.img_size is not None and patches.strict_img_size else None
    sides = f"{size[0]}, {size[1]}" if size else "H, W"
    expected = f"images: expected a tensor of normalized images, (B, {channels}, {sides})"
    if not isinstance(images, Tensor):
        raise InputError(f"{expected}, got {_other_type(images)}")
    shape = tuple(images.shape)
    if images.ndim != 4:
        hint = ": one image needs a batch axis, images[None]" if images.ndim == 3 else ""
        raise InputError(f"{expected}, got shape {shape}{hint}")
    if images.shape[1] != channels:
        raise InputError(f"{expected}, got shape {shape}{_other_channels(shape, channels)}")
    height, width = images.shape[2:]
    if size:
        if (height, width) != size:
            raise InputError(f"{expected}, got shape {shape}: resize to {size[0]} x {size[1]} pixels, as in training")
    elif not patches.dynamic_img_pad and (height % patch_size[0] or width % patch_size[1]):
        raise InputError(f"{expected}, got shape {shape}: height and width must be multiples of {patch_size}")
    if not images.is_floating_point():
        raise InputError(
            f"{expected}, got {images.dtype}: scale pixels to 0 ... 1 and normalize them as in training, as "
            "dual_cross_attention.data.test_transform does; images.float() / 255 alone is not enough"
        )
    # Autocast converts what the convolution is given.
    if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
        raise InputError(f"{expected} of {weight.dtype}, got {images.dtype}: images.to({weight.dtype})")
    if images.device != weight.device and not weight.is_meta:  # Accelerate loads offloaded weights when they are used
        raise InputError(f"{expected} on {weight.device}, where the model is, got {images.device}: images.to(device)")
    if images.device.type == "cpu" and images.numel() and not torch.compiler.is_compiling():
        _check_values(images, expected)


def _check_values(images: Tensor, expected: str) -> None:
    largest = float(images.detach().abs().max())
    if not math.isfinite(largest):
        raise InputError(f"{expected}, got values that are NaN or infinite")
    if largest > LARGEST_NORMALIZED:
        logger.warning(
            "%s, got values up to %.4g, which look like pixels of 0 ... 255: scale them to 0 ... 1 and normalize them "
            "as in training, as dual_cross_attention.data.test_transform does",
            expected,
            largest,
        )


def _other_type(images: Any) -> str:
    name = f"{type(images).__module__}.{type(images).__qualname__}".removeprefix("builtins.")
    if name == "numpy.ndarray":
        return f"a NumPy array of shape {images.shape}: torch.from_numpy(images)"
    if isinstance(images, list | tuple) and images and all(isinstance(image, Tensor) for image in images):
        return f"a {name} of {len(images)} tensors: torch.stack(images)"
    return f"{name}: dual_cross_attention.data.test_transform makes such tensors of PIL images, torch.stack a batch"


def _other_channels(shape: tuple[int, ...], channels: int) -> str:
    if shape[3] == channels:
        return ": channels come before height and width, images.permute(0, 3, 1, 2)"
    if shape[1] == 1:
        return f": repeat the gray channel, images.expand(-1, {channels}, -1, -1)"
    if (shape[1], channels) == (4, 3):
        return ": drop the alpha channel, images[:, :3]"
    return ""
