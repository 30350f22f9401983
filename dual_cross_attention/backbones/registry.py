"""The families of backbones, and which one a timm model is of."""

import timm
from timm.models import is_model_in_modules
from torch import nn

from dual_cross_attention.backbones.cait import CaitFamily
from dual_cross_attention.backbones.eva import EvaFamily
from dual_cross_attention.backbones.family import BackboneFamily
from dual_cross_attention.backbones.hybrid import Hybrid
from dual_cross_attention.backbones.plain_vit import PlainViT
from dual_cross_attention.backbones.readout import ReadOut
from dual_cross_attention.backbones.swin import Swin
from dual_cross_attention.errors import InputError

FAMILIES: tuple[BackboneFamily, ...] = (PlainViT(), Hybrid(), EvaFamily(), Swin(), CaitFamily())
SUGGESTED = "deit_tiny_patch16_224, vit_base_patch16_224 or vit_small_patch16_dinov3"


def list_backbones(family: str | None = None) -> list[str]:
    """Names of timm's models of all families, or of one; a few of them are refused when they are created.

    Raises:
        InputError: there is no such family.
    """
    modules = [module for each in _named(family) for module in each.timm_modules]
    return timm.list_models(module=modules)


def family_of_name(name: str) -> BackboneFamily | None:
    """The family of a timm model by its name; None: of no family."""
    return next((each for each in FAMILIES if is_model_in_modules(name, list(each.timm_modules))), None)


def open_backbone(backbone: nn.Module, name: str) -> tuple[BackboneFamily, ReadOut]:
    """The family and the read-out of a timm model.

    Args:
        name: of the model, for the message.

    Raises:
        InputError: its attention is not accessible, or its feature has no row of weights; the message says why.
    """
    reasons = [each.reason_against(backbone) for each in FAMILIES]
    family = next((each for each, reason in zip(FAMILIES, reasons, strict=True) if reason is None), None)
    if family is None:
        nearest = family_of_name(name) if timm.is_model(name) else None
        reason = reasons[0 if nearest is None else FAMILIES.index(nearest)]
        raise InputError(f"backbone '{name}' does not fit: {reason}; try {SUGGESTED}")
    read_out = family.read_out(backbone)
    if read_out is None:
        raise InputError(
            f"backbone '{name}' does not fit: it has no class token, mean or attention pool to classify (global_pool="
            f"{backbone.global_pool!r}); try {SUGGESTED}"
        )
    return family, read_out


def family_of_block(block: nn.Module) -> BackboneFamily:
    """The family that runs a single timm block."""
    return next(each for each in FAMILIES if each.runs(block))


def _named(family: str | None) -> tuple[BackboneFamily, ...]:
    if family is None:
        return FAMILIES
    found = tuple(each for each in FAMILIES if each.name == family)
    if not found:
        raise InputError(f"family: expected one of {', '.join(each.name for each in FAMILIES)}, got {family!r}")
    return found
