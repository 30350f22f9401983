"""The parts of a timm block around its attention, so that the caller can compute the attention itself.

Modules and parameters stay timm's, so state dicts fit both ways. The functions follow the order of
`timm.models.vision_transformer.Block` and `Attention`: projections and heads (`project`), attention, then output
projection, residuals and MLP (`finish_block`).
"""

from typing import NamedTuple, cast

import torch
from timm.models.vision_transformer import Attention, Block
from torch import Tensor
from torch.nn import functional as F


class DropPathMasks(NamedTuple):
    """Stochastic depth of a block's two residual branches: factors a row, (rows, 1, 1); 0 drops the branch."""

    attention: Tensor
    mlp: Tensor


def sample_drop_path(block: Block, rows: int, device: torch.device) -> DropPathMasks | None:
    """Samples the factors of the block's own DropPath modules; None where they would be 1.

    Sampled outside of the block's forward pass, they are the same under compilation and when checkpointing recomputes
    the block; blocks that differ in the rate only share one compiled graph.
    """
    if not block.training or not getattr(block.drop_path1, "drop_prob", 0.0):
        return None
    ones = torch.ones(rows, 1, 1, device=device)
    return DropPathMasks(block.drop_path1(ones), block.drop_path2(ones))


def attention_of(block: Block) -> Attention:
    """The block's attention module, whose type `create_backbone` has checked."""
    return cast(Attention, block.attn)


def project(attention: Attention, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, D) → query, key, value, each (B, heads, N, head_dim), normalized as the module has it."""
    query, key, value = _split_heads(attention, attention.qkv(tokens))
    return attention.q_norm(query), attention.k_norm(key), value


def project_query(attention: Attention, tokens: Tensor) -> Tensor:
    """Queries only, from the same fused projection: (B, n, D) → (B, heads, n, head_dim)."""
    (query,) = _project_part(attention, tokens, slice(None, attention.num_heads * attention.head_dim))
    return attention.q_norm(query)


def project_key_value(attention: Attention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values only, from the same fused projection: (B, N, D) → two (B, heads, N, head_dim)."""
    key, value = _project_part(attention, tokens, slice(attention.num_heads * attention.head_dim, None))
    return attention.k_norm(key), value


def attend(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(QKᵀ/√d) V: (B, heads, n, d), (B, heads, N, d), (B, heads, N, d) → (B, n, heads · d), heads merged.

    PyTorch's fused kernels store their result in this layout, so merging the heads copies nothing.
    """
    dropout = attention.attn_drop.p if attention.training else 0.0
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout).transpose(1, 2).flatten(2)


def finish_block(
    block: Block, tokens: Tensor, normed: Tensor, attended: Tensor, drop_path: DropPathMasks | None
) -> Tensor:
    """Applies what follows the attention: output projection, residual, MLP, residual.

    Args:
        tokens: (B, n, D) the residual stream of the query tokens.
        normed: (B, n, D) the same after the first norm (for gated attention).
        attended: (B, n, heads · head_dim) the attention's output; or (k·B, n, …), k outputs for the same tokens.
        drop_path: factors for `attended`'s rows; None: nothing is dropped.

    Returns:
        (B, n, D), or (k·B, n, D).
    """
    attention = attention_of(block)
    attended = attention.norm(attended)
    if attention.gate is not None:
        attended = attended * _rows(attention.gate(normed).sigmoid(), attended.shape[0])
    residual = block.ls1(attention.proj_drop(attention.proj(attended)))
    if drop_path is not None:
        residual = residual * drop_path.attention.to(residual.dtype)
    tokens = _rows(tokens, attended.shape[0]) + residual
    residual = block.ls2(block.mlp(block.norm2(tokens)))
    if drop_path is not None:
        residual = residual * drop_path.mlp.to(residual.dtype)
    return tokens + residual


def _rows(tokens: Tensor, rows: int) -> Tensor:
    """Repeats (B, n, D) to (rows, n, D)."""
    batch = tokens.shape[0]  # len() would fix the batch size under torch.export
    return tokens if batch == rows else tokens.repeat(rows // batch, 1, 1)


def _project_part(attention: Attention, tokens: Tensor, part: slice) -> tuple[Tensor, ...]:
    """Applies a slice of the fused qkv projection."""
    bias = attention.qkv.bias
    return _split_heads(attention, F.linear(tokens, attention.qkv.weight[part], None if bias is None else bias[part]))


def _split_heads(attention: Attention, projected: Tensor) -> tuple[Tensor, ...]:
    """(B, N, parts · D) → parts × (B, heads, N, head_dim)."""
    batch, tokens, _ = projected.shape
    return projected.view(batch, tokens, -1, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
