"""Arguments of `DualCrossAttentionViT`: their values, and whether they fit a backbone."""

from typing import Any, Literal

from torch import nn

from dual_cross_attention.backbones.family import BackboneFamily
from dual_cross_attention.backbones.readout import ReadOut
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.glca import GLCA_INITS, LOCAL_QUERIES

ABLATIONS = ("full", "sa_only", "sa_glca", "sa_pwca")
DISTRACTOR_STREAMS = ("pwca", "sa")

Ablation = Literal["full", "sa_only", "sa_glca", "sa_pwca"]


def check_values(ablation: str, glca_init: str, distractor_stream: str, local_queries: str, local_ratio: float) -> None:
    """Checks the values that are the same for all backbones.

    Raises:
        InputError: an unknown name, or a local ratio outside (0, 1].
    """
    for name, value, known in (
        ("ablation", ablation, ABLATIONS),
        ("glca_init", glca_init, GLCA_INITS),
        ("distractor_stream", distractor_stream, DISTRACTOR_STREAMS),
        ("local_queries", local_queries, LOCAL_QUERIES),
    ):
        if value not in known:
            raise InputError(f"unknown {name} '{value}': there are {', '.join(known)}")
    if not 0.0 < local_ratio <= 1.0:
        raise InputError(f"local_ratio is the share R of patch tokens that are local, in (0, 1]; got {local_ratio}")


def check_fit(
    backbone: Any,
    family: BackboneFamily,
    read_out: ReadOut,
    pwca_blocks: int | None,
    distractor_tokens: float,
    local_queries: str,
) -> None:
    """Checks what depends on the backbone.

    Raises:
        InputError: more blocks than the backbone has, a share of tokens where windows are paired as a whole, or queries
            of a class token that the blocks do not have.
    """
    depth = len(family.blocks(backbone))
    if pwca_blocks is not None and not 1 <= pwca_blocks <= depth:
        raise InputError(
            f"pwca_blocks: expected a number of the backbone's blocks, from 1 to {depth}; got {pwca_blocks}"
        )
    if not 0.0 <= distractor_tokens <= 1.0:
        raise InputError(f"distractor_tokens: expected a share of the patch tokens, in [0, 1]; got {distractor_tokens}")
    if distractor_tokens != 1.0 and family.is_windowed:
        raise InputError(
            f"distractor_tokens: expected 1, all tokens, of '{name_of(backbone)}', whose windows are paired as a "
            f"whole; got {distractor_tokens}"
        )
    if local_queries == "cross" and read_out.reads_patches:
        raise InputError(
            "local_queries cross: expected a backbone with a class token in its blocks, got one that classifies by "
            f"{read_out.name} (global_pool {backbone.global_pool!r})"
        )


def name_of(backbone: nn.Module) -> str:
    """timm's name of a model, or that of its class."""
    return str((getattr(backbone, "pretrained_cfg", None) or {}).get("architecture") or type(backbone).__name__)
