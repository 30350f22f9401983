"""Creates a timm backbone of one of the families, and loads its weights."""

import difflib
from typing import Any

import timm
from torch import nn

from dual_cross_attention.backbones.registry import FAMILIES, family_of_name, list_backbones, open_backbone
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, short_repr
from dual_cross_attention.weights import Loaded, fetch_imagenet_weights, load_weights

READING_KWARGS = {
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_filter_fn",
    "pretrained_strict",
}
"""Arguments of timm.create_model that have it load weights."""
LARGEST_KWARG = 100_000
LARGEST_KWARGS = {"depth": 1000, "depths": 100}
LONGEST_LIST = 16
"""Of a kwarg with a number for each stage."""


def create_backbone(
    name: str, num_classes: int, img_size: tuple[int, int], pretrained: bool | str = False, **timm_kwargs: Any
) -> nn.Module:
    """A timm model with a head of `num_classes`, its position embedding resampled to `img_size`.

    Args:
        name: timm's name, with or without a pretrained tag (`vit_base_patch16_224.augreg_in21k`).
        num_classes: width of the classifier; 0: none.
        img_size: (height, width) in pixels, multiples of the patch size.
        pretrained: False: random; True: timm's weights (fetched once, then cached); a path: see `load_weights`.
        **timm_kwargs: passed on, such as `drop_path_rate=0.1`, `depth=4`.

    Raises:
        InputError: unknown or unsuitable backbone, size, or weights.
    """
    if family_of_name(name) is None:
        nearest = ", ".join(difflib.get_close_matches(name, list_backbones(), n=3, cutoff=0))
        if timm.is_model(name):
            families = "/".join(each.name for each in FAMILIES)
            raise InputError(
                f"backbone '{name}' is of none of the families whose attention is accessible ({families}); the nearest "
                f"names of those: {nearest} (dcal backbones lists all)"
            )
        raise InputError(f"unknown backbone '{escape(name):.80}': did you mean {nearest}? (dcal backbones lists all)")
    _check_kwargs(timm_kwargs)
    try:
        backbone = timm.create_model(name, num_classes=num_classes, img_size=img_size, **timm_kwargs)
    except Exception as error:  # a patch of 0 pixels, a layer that does not exist: each raises something else
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"timm cannot build '{name}' with img_size={img_size}, {timm_kwargs}: {reason}") from error

    family, _ = open_backbone(backbone, name)
    patch = family.patch_size(backbone)
    if any(side % p for side, p in zip(img_size, patch, strict=True)):
        down = tuple(max(p, side // p * p) for side, p in zip(img_size, patch, strict=True))
        raise InputError(
            f"img_size {img_size[0]}x{img_size[1]} is not a multiple of the patch size {patch[0]}x{patch[1]} of "
            f"'{name}': take {down[0]}x{down[1]} or {down[0] + patch[0]}x{down[1] + patch[1]}"
        )
    load_pretrained(backbone, name, pretrained)
    return backbone


def load_pretrained(
    backbone: Any,
    name: str,
    pretrained: bool | str,
    key: str | None = None,
    img_size: tuple[int, int] | None = None,
) -> Loaded | None:
    """Weights into a backbone, and the mean and std that a file names for its pixels into its `pretrained_cfg`.

    Args:
        name: timm's name of it.
        pretrained, key, img_size: as `pretrained`, `weights_key` and `weights_img_size` of `create_model`.

    Returns:
        What a file holds in addition to the backbone; None where `pretrained` is no path.

    Raises:
        InputError: weights that cannot be read or do not fit.
    """
    if pretrained is True:
        fetch_imagenet_weights(backbone, name)
    if isinstance(pretrained, bool):
        return None
    loaded = load_weights(backbone, pretrained, key, img_size)
    if loaded.stats:
        named = {"mean": loaded.stats.mean, "std": loaded.stats.std}
        backbone.pretrained_cfg = {**backbone.pretrained_cfg, **named}  # timm's resolve_data_config reads it
    return loaded


def _check_kwargs(timm_kwargs: dict[str, Any]) -> None:
    """Refuses arguments that read files or exhaust memory: they may come from an untrusted model file's header."""
    for name, value in timm_kwargs.items():
        if name in READING_KWARGS:
            raise InputError(
                f"backbone_kwargs: expected what shapes the model, got '{name}': --weights says what to load"
            )
        largest = LARGEST_KWARGS.get(name, LARGEST_KWARG)
        if isinstance(value, list | tuple) and len(value) > LONGEST_LIST:
            raise InputError(f"backbone_kwargs: expected {name} of at most {LONGEST_LIST} numbers, got {len(value)}")
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(each, int | float) and not abs(each) <= largest for each in numbers):
            raise InputError(f"backbone_kwargs: expected {name} of at most {largest:,}, got {short_repr(value)}")
