"""timm's `Eva`: EVA, EVA-02, DINOv3, RoPE-ViTs, Perception Encoder, LingBot-Vision, Sapiens2.

Notable:
- rotary embedding of patch tokens, after the norms of query and key. The table of positions gets rows for the prefix
  tokens that rotate by nothing (sine 0, cosine 1), so any selection of tokens is rotated by its own rows;
- `rope_type='mixed'` has a table for each block, with trained frequencies. A block of GLCA takes the table of the
  block of the backbone that is at its place;
- training-time augmentation of the table (`rope_shift_coords`, `rope_jitter_coords`, `rope_rescale_coords`) is sampled
  once a forward pass from torch's generator of the device, which a run seeds and restores;
- query, key and value have one projection or three, with biases beside or in them, and none for keys.
"""

from typing import Any

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn
from torch.nn import functional as F

from dual_cross_attention.backbones.drop_path import DropPathMasks
from dual_cross_attention.backbones.family import BackboneFamily, repeat_rows, split_heads


class EvaFamily(BackboneFamily):
    """Blocks of timm's `Eva`, pre-norm or post-norm."""

    name = "eva"
    timm_modules = ("eva",)
    summary = "EVA, EVA-02, DINOv3, RoPE-ViTs, Perception Encoder: rotary embedding of queries and keys"

    def reason_against(self, backbone: nn.Module) -> str | None:
        if type(backbone) is not Eva:
            return f"it is a {type(backbone).__name__}, not an Eva"
        if not all(map(self.runs, backbone.blocks)):
            return f"its blocks are {type(backbone.blocks[0]).__name__}s"
        if backbone.patch_drop is not None:
            return "patch_drop_rate > 0 drops the tokens that rollout is about"
        return None

    def runs(self, block: Any) -> bool:
        return type(block) in (EvaBlock, EvaBlockPostNorm) and type(block.attn) in (EvaAttention, AttentionRope)

    def embed(self, backbone: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens, table = backbone._pos_embed(backbone.patch_embed(images))
        return backbone.norm_pre(tokens), _with_prefix(table, backbone.num_prefix_tokens)

    def positions(self, backbone: Any) -> Tensor | None:
        if backbone.rope is None:
            return None
        is_fixed = getattr(backbone.rope, "feat_shape", None) is not None
        table = backbone.rope.get_embed() if is_fixed else backbone.rope.get_embed(shape=backbone.patch_embed.grid_size)
        return _with_prefix(table, backbone.num_prefix_tokens)

    def positions_of_block(self, positions: Tensor | None, place: int) -> Tensor | None:
        return positions[place] if positions is not None and positions.ndim == 4 else positions

    def heads(self, block: Any) -> tuple[int, int]:
        return block.attn.num_heads, block.attn.head_dim

    def normalize(self, block: Any, tokens: Tensor) -> Tensor:
        return tokens if _is_post_norm(block) else block.norm1(tokens)

    def project(self, block: Any, normed: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        attention = block.attn
        if attention.qkv is None:
            return self.project_query(block, normed, positions), *self.project_key_value(block, normed, positions)
        query, key, value = _split_parts(attention, _project_part(attention, normed, slice(None)))
        return _rotated(attention, attention.q_norm(query), positions, value), *_key_value(
            attention, key, value, positions
        )

    def project_query(self, block: Any, normed: Tensor, positions: Tensor | None) -> Tensor:
        attention = block.attn
        if attention.qkv is None:
            projected = attention.q_proj(normed)
        else:
            projected = _project_part(attention, normed, slice(None, attention.num_heads * attention.head_dim))
        query = split_heads(projected, attention.num_heads)
        return _rotated(attention, attention.q_norm(query), positions, query)

    def project_key_value(self, block: Any, normed: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        attention = block.attn
        if attention.qkv is None:
            heads = getattr(attention, "num_kv_heads", attention.num_heads)
            key, value = (split_heads(each(normed), heads) for each in (attention.k_proj, attention.v_proj))
        else:
            part = slice(attention.num_heads * attention.head_dim, None)
            key, value = _split_parts(attention, _project_part(attention, normed, part))
        return _key_value(attention, key, value, positions)

    def close(
        self, block: Any, tokens: Tensor, normed: Tensor, attended: Tensor, drop_path: DropPathMasks | None
    ) -> Tensor:
        attention, is_post_norm = block.attn, _is_post_norm(block)
        attended = attention.norm(attended)
        if attention.gate is not None:
            attended = attended * repeat_rows(attention.gate(normed).sigmoid(), attended.shape[0])
        residual = attention.proj_drop(attention.proj(attended))
        if is_post_norm:
            residual = block.norm1(residual)
        elif block.gamma_1 is not None:
            residual = block.gamma_1 * residual
        if drop_path is not None:
            residual = residual * drop_path.attention.to(residual.dtype)
        tokens = repeat_rows(tokens, attended.shape[0]) + residual
        if is_post_norm:
            residual = block.norm2(block.mlp(tokens))
        else:
            residual = block.mlp(block.norm2(tokens))
            if block.gamma_2 is not None:
                residual = block.gamma_2 * residual
        if drop_path is not None:
            residual = residual * drop_path.mlp.to(residual.dtype)
        return tokens + residual

    def initialize(self, block: Any) -> None:
        super().initialize(block)
        if hasattr(block, "reset_parameters"):  # the layer scales, which are the block's own
            block.reset_parameters()


def _with_prefix(table: Tensor | None, prefix: int) -> Tensor | None:
    """A table (…, N, 2 · head_dim), sine before cosine, with rows for prefix tokens in front, which are not rotated."""
    if table is None or not prefix:
        return table
    sine, cosine = torch.zeros_like(table[..., :1, :]).chunk(2, dim=-1)
    row = torch.cat([sine, cosine + 1], dim=-1)
    return torch.cat([row.expand(*table.shape[:-2], prefix, -1), table], dim=-2)


def _is_post_norm(block: nn.Module) -> bool:
    return not hasattr(block, "gamma_1")  # FSDP changes the class of a block


def _rotated(attention: Any, heads: Tensor, positions: Tensor | None, like: Tensor) -> Tensor:
    """(B, heads, n, d) rotated, in the dtype of the values."""
    if positions is None:
        return heads
    return apply_rot_embed_cat(heads, positions, half=attention.rotate_half).type_as(like)


def _key_value(attention: Any, key: Tensor, value: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Norm and rotation of the keys; with fewer heads of keys and values than of queries, each serves several."""
    key = _rotated(attention, attention.k_norm(key), positions, value)
    groups = getattr(attention, "num_kv_groups", 1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return key, value


def _project_part(attention: Any, tokens: Tensor, part: slice) -> Tensor:
    """Applies a slice of the fused qkv projection."""
    weight = attention.qkv.weight[part]
    if getattr(attention, "q_bias", None) is None:
        bias = None if attention.qkv.bias is None else attention.qkv.bias[part]
        return F.linear(tokens, weight, bias)
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])[part]
    if attention.qkv_bias_separate:
        projected = F.linear(tokens, weight)
        projected += bias  # in the dtype of the projection, under autocast too
        return projected
    return F.linear(tokens, weight, bias)


def _split_parts(attention: Any, projected: Tensor) -> tuple[Tensor, ...]:
    """(B, N, parts · heads · d) → parts × (B, heads, N, d)."""
    return projected.unflatten(-1, (-1, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
