"""Images given to a loaded model: one or many, as paths, PIL images, arrays or tensors."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from dual_cross_attention.data.images import ImageSource
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr

CHANNELS = (1, 3, 4)
"""Channels of arrays and tensors: gray, RGB, RGBA."""
EXPECTED = (
    "expected a path, a PIL image, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W), with 1, 3 or 4 channels, or an "
    "iterable of them"
)


class Source(NamedTuple):
    """An image and its path; None for an image in memory."""

    path: str | None
    image: ImageSource


def image_sources(images: Any) -> tuple[Iterator[Source], bool]:
    """Returns lazily converted sources, and whether `images` is a single image.

    Args:
        images: what `EXPECTED` says; an array (N, H, W, 3) or a tensor (N, 3, H, W) is N images.

    Raises:
        InputError: something else; for the elements of an iterable, when they are taken.
    """
    if _is_image(images):
        return iter([_source(images, "images")]), True
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim != 4:
        raise InputError(f"images: {EXPECTED}, got {_described(images)}")
    if not isinstance(images, Iterable) or isinstance(images, bytes | bytearray | dict):
        raise InputError(f"images: {EXPECTED}, got {_described(images)}")
    return (_source(image, f"images[{position}]") for position, image in enumerate(images)), False


def _is_image(value: Any) -> bool:
    is_array = isinstance(value, np.ndarray | torch.Tensor) and value.ndim in (2, 3)
    return is_array or isinstance(value, str | os.PathLike | Image.Image)


def _source(image: Any, name: str) -> Source:
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        path = os.fsdecode(path) if isinstance(path, bytes) else path
        return Source(path, Path(path))
    if isinstance(image, Image.Image):
        return Source(None, image)
    if isinstance(image, np.ndarray | torch.Tensor):
        return Source(None, Image.fromarray(_as_array(image, name)))
    raise InputError(f"{name}: {EXPECTED}, got {_described(image)}")


def _as_array(image: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3 or 4)."""
    is_tensor = isinstance(image, torch.Tensor)
    wanted = f"{name}: expected uint8 {'(C, H, W)' if is_tensor else '(H, W, C)'} with C = 1, 3 or 4"
    if image.dtype not in (np.uint8, torch.uint8):
        raise InputError(
            f"{wanted}, got {_described(image)}: scale the pixels to 0 ... 255, round and convert them; do not "
            "normalize them"
        )
    channels_at = 0 if is_tensor else 2
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise InputError(f"{wanted}, got {_described(image)}")
    if image.ndim == 3 and image.shape[channels_at] not in CHANNELS:
        other = image.shape[2 - channels_at] in CHANNELS
        hint = f": image.{'permute(2, 0, 1)' if is_tensor else 'transpose(1, 2, 0)'}" if other else ""
        raise InputError(f"{wanted}, got {_described(image)}{hint}")
    if is_tensor:
        image = image.detach().cpu()
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
    return np.ascontiguousarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray | torch.Tensor):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        return f"{'an' if kind == 'array' else 'a'} {kind} of {value.dtype} {tuple(value.shape)}"
    return f"{type(value).__name__} {short_repr(value)}"
