"""A timm block, opened: its own modules in its own order, with the attention in the middle left to the caller.

The modules and their parameters stay timm's, so checkpoints fit both ways. What is opened here is what
`timm.models.vision_transformer.Block` and its `Attention` do between the norm and the output projection.
"""

from collections.abc import Callable

from timm.models.vision_transformer import Attention, Block
from torch import Tensor
from torch.nn import functional as F

# (query, key, value), each (B, heads, tokens, head_dim) → (B, heads, query tokens, head_dim)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def run_block(block: Block, tokens: Tensor, attend: Attend) -> Tensor:
    """The block's forward with `attend` in place of its attention: (B, N, D) → (B, N, D)."""
    normed = block.norm1(tokens)
    query, key, value = project(block.attn, normed)
    return finish_block(block, tokens, normed, attend(query, key, value))


def finish_block(block: Block, tokens: Tensor, normed: Tensor, attended: Tensor) -> Tensor:
    """What follows the attention: merge heads, residual, MLP, residual.

    Args:
        tokens: (B, n, D) the residual stream of the tokens that asked.
        normed: (B, n, D) the same after the first norm (for gated attention).
        attended: (B, heads, n, head_dim) what attention gave them.
    """
    tokens = tokens + block.drop_path1(block.ls1(merge_heads(block.attn, attended, normed)))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


def project(attention: Attention, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, D) → query, key, value, each (B, heads, N, head_dim), normalised as the module has it."""
    query, key, value = _split_heads(attention, attention.qkv(tokens))
    return attention.q_norm(query), attention.k_norm(key), value


def project_across(attention: Attention, asking: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of some tokens only, keys and values of others, from the same fused projection.

    Args:
        asking: (B, n, D) tokens that get a query.
        asked: (B, N, D) tokens that get a key and a value.

    Returns:
        query (B, heads, n, head_dim), key and value (B, heads, N, head_dim).
    """
    width = attention.num_heads * attention.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    (query,) = _split_heads(attention, F.linear(asking, weight[:width], None if bias is None else bias[:width]))
    key, value = _split_heads(attention, F.linear(asked, weight[width:], None if bias is None else bias[width:]))
    return attention.q_norm(query), attention.k_norm(key), value


def merge_heads(attention: Attention, attended: Tensor, normed: Tensor) -> Tensor:
    """(B, heads, n, head_dim) → (B, n, D), through the module's output projection."""
    attended = attention.norm(attended.transpose(1, 2).flatten(2))
    if attention.gate is not None:
        attended = attended * attention.gate(normed).sigmoid()
    return attention.proj_drop(attention.proj(attended))


def dropout_of(attention: Attention) -> float:
    """The attention dropout in force: the module's rate in training, else 0."""
    return attention.attn_drop.p if attention.training else 0.0


def _split_heads(attention: Attention, projected: Tensor) -> tuple[Tensor, ...]:
    """(B, N, parts · D) → parts × (B, heads, N, head_dim)."""
    batch, tokens, _ = projected.shape
    return projected.view(batch, tokens, -1, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
