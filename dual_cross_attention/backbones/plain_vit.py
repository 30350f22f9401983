"""timm's plain Vision Transformers: ViT, DeiT, DINOv2, CLIP, SigLIP, …

The functions follow the order of `timm.models.vision_transformer.Block` and `Attention`.
"""

from typing import Any

from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dual_cross_attention.backbones.drop_path import DropPathMasks
from dual_cross_attention.backbones.family import BackboneFamily, repeat_rows


class PlainViT(BackboneFamily):
    """Pre-norm blocks with a fused projection of query, key and value, and positions in the stem alone."""

    name = "vit"
    timm_modules: tuple[str, ...] = ("vision_transformer", "deit")
    summary = "plain ViTs: ViT, DeiT, DINOv2, CLIP, SigLIP, FlexiViT"

    def reason_against(self, backbone: nn.Module) -> str | None:
        if not isinstance(backbone, VisionTransformer):
            return f"it is a {type(backbone).__name__}, not a VisionTransformer"
        if type(backbone).forward_features is not VisionTransformer.forward_features:
            return "its forward pass is not that of a plain ViT"
        if not all(map(self.runs, backbone.blocks)):
            block: Any = backbone.blocks[0]
            other = f"have {type(block.attn).__name__}" if type(block) is Block else f"are {type(block).__name__}s"
            return f"its blocks {other}, not plain pre-norm ones"
        if not isinstance(backbone.patch_drop, nn.Identity):
            return "patch_drop_rate > 0 drops the tokens that rollout is about"
        return self.reason_against_stem(backbone)

    def reason_against_stem(self, backbone: Any) -> str | None:
        """As `reason_against`, of the patch embedding."""
        stem = backbone.patch_embed
        return None if isinstance(stem, PatchEmbed) else f"its patch embedding is a {type(stem).__name__}"

    def runs(self, block: Any) -> bool:
        return type(block) is Block and type(block.attn) is Attention

    def embed(self, backbone: Any, images: Tensor) -> tuple[Tensor, None]:
        return backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images))), None

    def heads(self, block: Any) -> tuple[int, int]:
        return block.attn.num_heads, block.attn.head_dim

    def project(self, block: Any, normed: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        attention = block.attn
        query, key, value = _split_parts(attention, attention.qkv(normed))
        return attention.q_norm(query), attention.k_norm(key), value

    def project_query(self, block: Any, normed: Tensor, positions: Tensor | None) -> Tensor:
        attention = block.attn
        (query,) = _project_part(attention, normed, slice(None, attention.num_heads * attention.head_dim))
        return attention.q_norm(query)

    def project_key_value(self, block: Any, normed: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        attention = block.attn
        key, value = _project_part(attention, normed, slice(attention.num_heads * attention.head_dim, None))
        return attention.k_norm(key), value

    def close(
        self, block: Any, tokens: Tensor, normed: Tensor, attended: Tensor, drop_path: DropPathMasks | None
    ) -> Tensor:
        attention = block.attn
        attended = attention.norm(attended)
        if attention.gate is not None:
            attended = attended * repeat_rows(attention.gate(normed).sigmoid(), attended.shape[0])
        residual = block.ls1(attention.proj_drop(attention.proj(attended)))
        if drop_path is not None:
            residual = residual * drop_path.attention.to(residual.dtype)
        tokens = repeat_rows(tokens, attended.shape[0]) + residual
        residual = block.ls2(block.mlp(block.norm2(tokens)))
        if drop_path is not None:
            residual = residual * drop_path.mlp.to(residual.dtype)
        return tokens + residual


def _project_part(attention: Any, tokens: Tensor, part: slice) -> tuple[Tensor, ...]:
    """Applies a slice of the fused qkv projection."""
    bias = attention.qkv.bias
    return _split_parts(attention, F.linear(tokens, attention.qkv.weight[part], None if bias is None else bias[part]))


def _split_parts(attention: Any, projected: Tensor) -> tuple[Tensor, ...]:
    """(B, N, parts · heads · d) → parts × (B, heads, N, d)."""
    batch, tokens, _ = projected.shape
    return projected.view(batch, tokens, -1, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
