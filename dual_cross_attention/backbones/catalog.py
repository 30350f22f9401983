"""What is known of each backbone without its weights: the model is built on PyTorch's meta device, without memory."""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg

from dual_cross_attention.backbones.registry import family_of_name, open_backbone
from dual_cross_attention.errors import InputError

NO_LICENSE = "not recorded"


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """A backbone, and what the method can do with it."""

    name: str
    """timm's, without a pretrained tag."""
    family: str
    parameters: int
    """Number of, without a classifier."""
    input_size: tuple[int, int]
    """(height, width) in pixels that timm's default weights were trained at."""
    patch_size: tuple[int, int] | None
    """(height, width) in pixels; None: refused."""
    feature: str
    """What is classified: "class token", "average" of the tokens, "attention pool" or
    "class attention"; "" of a refused backbone."""
    branches: tuple[str, ...]
    """Of "sa", "glca" and "pwca"; none of a refused backbone."""
    cross: bool
    """Whether `local_queries cross` works, which needs a class token."""
    licenses: tuple[str, ...]
    """Of the weights that timm publishes, as timm records them; none: timm publishes no weights."""
    refused: str = ""
    """Why it is refused."""


def describe(name: str) -> BackboneInfo:
    """What is known of a timm model of one of the families.

    Raises:
        InputError: it is of none.
    """
    family = family_of_name(name)
    if family is None:
        raise InputError(f"backbone '{name}' is of none of the families")
    with torch.device("meta"):
        backbone: Any = timm.create_model(name, num_classes=0)
    cfg = get_pretrained_cfg(name)
    size = (224, 224) if cfg is None else cfg.input_size[1:]
    known = {
        "name": name,
        "family": family.name,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "input_size": (size[0], size[1]),
        "licenses": _licenses(name),
    }
    try:
        family, read_out = open_backbone(backbone, name)
    except InputError as error:
        reason = str(error).partition("does not fit: ")[2].partition("; try")[0]
        return BackboneInfo(**known, patch_size=None, feature="", branches=(), cross=False, refused=reason)
    return BackboneInfo(
        **known,
        patch_size=family.patch_size(backbone),
        feature=read_out.name,
        branches=("sa", "glca", "pwca"),
        cross=not read_out.reads_patches,
    )


def _licenses(name: str) -> tuple[str, ...]:
    cfgs = [get_pretrained_cfg(tagged) for tagged in timm.list_pretrained(name)]
    return tuple(sorted({(cfg and cfg.license) or NO_LICENSE for cfg in cfgs}))
