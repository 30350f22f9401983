"""GLCA's blocks, and the scores that select its local tokens."""

from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from dual_cross_attention.attention.global_local import GlobalLocalBlock
from dual_cross_attention.attention.rollout import (
    AttentionLayer,
    attention_rollout,
    row_times_attention,
    row_times_layer,
)
from dual_cross_attention.backbones.family import BackboneFamily
from dual_cross_attention.errors import InputError

LOCAL_QUERIES = ("rollout", "random", "penultimate", "local_only", "cross")
GLCA_INITS = ("random", "last_block")
MAX_GLCA_BLOCKS = 100

LocalQueries = Literal["rollout", "random", "penultimate", "local_only", "cross"]


def make_glca_blocks(
    family: BackboneFamily,
    backbone: nn.Module,
    glca_init: str,
    local_queries: LocalQueries,
    number: int,
) -> list[GlobalLocalBlock]:
    """Makes GLCA's M blocks, with their own weights.

    Args:
        family: of the backbone.
        glca_init: "last_block" copies the backbone's last M blocks, in their order; "random" initializes them.
        local_queries: one of `LOCAL_QUERIES`.
        number: M.

    Raises:
        InputError: more copies than there are blocks on the last grid, or no second to last block for "penultimate".
    """
    blocks = family.blocks(backbone)[family.first_on_last_grid(backbone) :]
    most = len(blocks) if glca_init == "last_block" else MAX_GLCA_BLOCKS
    if not 1 <= number <= most:
        raise InputError(f"glca_blocks: expected 1 to {most} with glca_init {glca_init}, got {number}")
    if local_queries == "penultimate" and len(blocks) < 2:
        raise InputError("local_queries penultimate: expected a backbone of at least two blocks")
    sources = [blocks[place - number if glca_init == "last_block" else -1] for place in range(number)]
    own = [family.copy_for_glca(backbone, block) for block in sources]
    if glca_init == "random":
        for block in own:
            family.initialize(block)
    attends = local_queries if local_queries in ("local_only", "cross") else "global"
    return [GlobalLocalBlock(block, family.num_prefix_tokens(backbone), attends, family) for block in own]


def is_scored(layer: int, layers: int, local_queries: LocalQueries) -> bool:
    """Whether `score_patches` needs the queries and keys of a layer, counted from 0."""
    return layer == layers - 2 if local_queries == "penultimate" else local_queries != "random"


def score_patches(
    tokens: Tensor,
    layers: Sequence[AttentionLayer],
    num_prefix_tokens: int,
    local_queries: LocalQueries,
    training: bool,
    start: Tensor | None = None,
) -> Tensor:
    """Scores the patch tokens, (B, N), float32; the tokens with the largest scores are local.

    The score is CLS's attention rollout through all layers; with "penultimate", CLS's attention in the second to last
    layer, averaged over heads; with "random", uniform in [0, 1): in training sampled per image from torch's generator
    of the device, in evaluation the same for all images and calls, so that predictions are deterministic and do not
    depend on the batch.

    Args:
        tokens: (B, prefix + N, D), for shape and device.
        layers: those that `is_scored` names.
        start: (B, prefix + N) of a read-out that reads patch tokens, the row that takes CLS's place; None: CLS.
    """
    if local_queries == "random":
        batch, patches = tokens.shape[0], tokens.shape[1] - num_prefix_tokens
        if training:
            return torch.rand(batch, patches, device=tokens.device)
        return _fixed_scores(patches).to(tokens.device, non_blocking=True).expand(batch, -1)
    if local_queries != "penultimate":
        return rollout_of(layers, start)[:, num_prefix_tokens:]
    if start is not None:
        return row_times_layer(start, layers[0])[:, num_prefix_tokens:]
    query, key, mixing, *_ = layers[0]
    row = torch.ones(tokens.shape[0], 1, device=tokens.device)
    return row_times_attention(row, query[:, :, :1], key, mixing=mixing)[:, num_prefix_tokens:]


def rollout_of(layers: Sequence[AttentionLayer], start: Tensor | None) -> Tensor:
    """Attention rollout through layers, (B, prefix + N), see `attention_rollout`; of CLS, or from a row of weights."""
    queries, keys, mixings, biases, windows = zip(*layers, strict=True)
    return attention_rollout(queries, keys, start=start, mixings=mixings, biases=biases, windows=windows)


@cache
def _fixed_scores(patches: int) -> Tensor:
    """(patches,) uniform in [0, 1), always the same. It is kept: an exported graph holds it as a constant."""
    return torch.rand(patches, generator=torch.Generator().manual_seed(0))
