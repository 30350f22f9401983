"""Attention rollout: how much of every input token reaches the class token through all layers.

Notable:
- only CLS's row of the product is computed, from the last layer to the first: a vector times a matrix per layer,
  not a matrix times a matrix;
- the attention weights are made again from queries and keys, a few query rows at a time, so that nothing of size
  tokens × tokens is ever kept;
- always float32 and never part of the autograd graph, whatever autocast says around it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Attention weights held at once (batch × heads × query rows × tokens). On a CPU they should stay in the cache: 2¹⁹
# float32 are 2 MiB; with 2²⁴, one core of an AMD EPYC took 1.7 times as long at 785 tokens, 2.8 at 1,025. On a GPU
# kernel launches count more.
MAX_SCORES_CPU = 2**19
MAX_SCORES = 2**24


@torch.no_grad()
def attention_rollout(queries: Sequence[Tensor], keys: Sequence[Tensor], max_scores: int | None = None) -> Tensor:
    """The class token's row of Ŝ = S̄_L · … · S̄₂ · S̄₁, with S̄ₗ = 0.5·Sₗ + 0.5·E and Sₗ the mean over heads.

    Source: DCAL (arXiv 2205.02151), section 3.2; Abnar & Zuidema 2020.

    Args:
        queries: one tensor a layer, first layer first, each (B, heads, tokens, head_dim); token 0 is CLS.
        keys: likewise. Scores are scaled by 1/√head_dim.
        max_scores: attention weights held in memory at once; a layer with more is worked off in chunks of query rows.
            None chooses by device. The result does not depend on it.

    Returns:
        (B, tokens), float32; rows sum to 1.

    Raises:
        ValueError: no layers, or queries and keys that do not match.
    """
    if not queries or len(queries) != len(keys):
        raise ValueError(
            f"expected queries and keys of the same layers, at least one; got {len(queries)} and {len(keys)}"
        )
    for layer, (query, key) in enumerate(zip(queries, keys, strict=True)):
        if query.ndim != 4 or (query.shape != key.shape and layer + 1 < len(queries)):
            raise ValueError(
                f"layer {layer}: expected query and key of one shape (B, heads, tokens, head_dim), the same in all "
                f"layers; got {tuple(query.shape)} and {tuple(key.shape)}"
            )

    if max_scores is None:
        max_scores = MAX_SCORES_CPU if queries[0].device.type == "cpu" else MAX_SCORES
    batch, _, tokens, _ = keys[0].shape
    row = torch.zeros(batch, tokens, dtype=torch.float32, device=queries[0].device)
    row[:, 0] = 1.0  # e_CLS
    with torch.autocast(row.device.type, enabled=False):
        # The last layer is entered with e_CLS alone: one query row is enough there.
        row = 0.5 * row + 0.5 * _row_times_attention(row[:, :1], queries[-1][:, :, :1], keys[-1], max_scores)
        for query, key in zip(reversed(queries[:-1]), reversed(keys[:-1]), strict=True):
            row = 0.5 * row + 0.5 * _row_times_attention(row, query, key, max_scores)
    return row


def _row_times_attention(row: Tensor, query: Tensor, key: Tensor, max_scores: int) -> Tensor:
    """row · S, with S the mean over heads of softmax(QKᵀ/√d): (B, n), (B, h, n, d), (B, h, N, d) → (B, N)."""
    batch, heads, rows, head_dim = query.shape
    tokens = key.shape[2]
    query = query.float() * (1.0 / math.sqrt(head_dim))
    key = key.float().transpose(-2, -1)
    row = row / heads
    out = row.new_zeros(batch, tokens)
    step = max(1, max_scores // (batch * heads * tokens))
    for start in range(0, rows, step):
        chunk = slice(start, start + step)
        attention = (query[:, :, chunk] @ key).softmax(dim=-1)  # (B, h, step, N)
        out += torch.einsum("bn,bhnm->bm", row[:, chunk], attention)
    return out
