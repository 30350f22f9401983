"""timm's `Cait`: CaiT, whose blocks have patch tokens only, and class-attention layers after them.

Notable:
- talking heads: scores of all heads are mixed before the softmax, and its weights after it. Attention cannot be fused,
  and its (heads, tokens, tokens) weights are in memory, of PWCA's joint softmax (heads, tokens, 2 · tokens);
- after the second mixing, rows neither sum to 1 nor stay positive: rollout reads the softmax between the two;
- the distractor's keys are part of that softmax, and its values are mixed as the image's own;
- the class token comes with the class-attention layers, which the read-out runs: `class_attention.py`.
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import PatchEmbed
from timm.models.cait import Cait, ClassAttn, LayerScaleBlock, LayerScaleBlockClassAttn, TalkingHeadAttn
from torch import Tensor, nn
from torch.nn import functional as F

from dual_cross_attention.backbones.class_attention import CLASS_ATTENTION, initialize_layer_scales
from dual_cross_attention.backbones.drop_path import DropPathMasks
from dual_cross_attention.backbones.family import BackboneFamily, Part, repeat_rows
from dual_cross_attention.backbones.readout import ReadOut
from dual_cross_attention.backbones.talking_heads import mix_heads


class CaitFamily(BackboneFamily):
    """Patch blocks of timm's `Cait`."""

    name = "cait"
    timm_modules = ("cait",)
    summary = "CaiT: talking heads, and class-attention layers after the blocks"
    has_fused_attention = False

    def reason_against(self, backbone: nn.Module) -> str | None:
        if type(backbone) is not Cait:
            return f"it is a {type(backbone).__name__}, not a Cait"
        if not all(map(self.runs, backbone.blocks)):
            return f"its blocks are {type(backbone.blocks[0]).__name__}s, not those of CaiT"
        layers: Any = backbone.blocks_token_only
        of_class = (type(each) is LayerScaleBlockClassAttn and type(each.attn) is ClassAttn for each in layers or ())
        if not layers or not all(of_class):
            return "it has no class-attention layers, or other ones than CaiT"
        if backbone.global_pool != "token":
            return f"global_pool {backbone.global_pool!r} does not classify its class token"
        stem = backbone.patch_embed
        return None if isinstance(stem, PatchEmbed) else f"its patch embedding is a {type(stem).__name__}"

    def runs(self, block: Any) -> bool:
        return type(block) is LayerScaleBlock and type(block.attn) is TalkingHeadAttn

    def embed(self, backbone: Any, images: Tensor) -> tuple[Tensor, None]:
        return backbone.pos_drop(backbone.patch_embed(images) + backbone.pos_embed), None

    def read_out(self, backbone: Any) -> ReadOut:
        return CLASS_ATTENTION

    def num_prefix_tokens(self, backbone: Any) -> int:
        return 0

    def final_blocks(self, backbone: Any) -> Sequence[nn.Module]:
        return backbone.blocks_token_only

    def final_parts(self, backbone: Any) -> list[Part]:
        return [backbone.cls_token, backbone.blocks_token_only, backbone.norm]

    def heads(self, block: Any) -> tuple[int, int]:
        return block.attn.num_heads, block.attn.qkv.in_features // block.attn.num_heads

    def project(self, block: Any, normed: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = _project_parts(block.attn, normed, slice(None))
        return query, key, value

    def project_query(self, block: Any, normed: Tensor, positions: Tensor | None) -> Tensor:
        (query,) = _project_parts(block.attn, normed, slice(None, block.attn.qkv.in_features))
        return query

    def project_key_value(self, block: Any, normed: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        key, value = _project_parts(block.attn, normed, slice(block.attn.qkv.in_features, None))
        return key, value

    def attend(self, block: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Talking-heads attention (arXiv 2003.02436), in the order of timm's `TalkingHeadAttn`; there is no bias."""
        attention, before, after = block.attn, block.attn.proj_l, block.attn.proj_w
        scores = (query * attention.scale) @ key.transpose(-2, -1)
        weights = mix_heads(scores, before.weight, before.bias).softmax(dim=-1)
        weights = attention.attn_drop(mix_heads(weights, after.weight, after.bias))
        return (weights @ value).transpose(1, 2).flatten(2)

    def score_mixing(self, block: Any) -> Tensor:
        return block.attn.proj_l.weight

    def weight_mixing(self, block: Any) -> Tensor:
        return block.attn.proj_w.weight

    def low_rank_layers(self, block: Any) -> list[nn.Linear]:
        """Without the mixings of heads, which have no more than heads × heads weights."""
        mixings = (block.attn.proj_l, block.attn.proj_w) if isinstance(block.attn, TalkingHeadAttn) else ()
        return [layer for layer in super().low_rank_layers(block) if layer not in mixings]

    def close(
        self, block: Any, tokens: Tensor, normed: Tensor, attended: Tensor, drop_path: DropPathMasks | None
    ) -> Tensor:
        attention = block.attn
        residual = block.gamma_1 * attention.proj_drop(attention.proj(attended))
        if drop_path is not None:
            residual = residual * drop_path.attention.to(residual.dtype)
        tokens = repeat_rows(tokens, attended.shape[0]) + residual
        residual = block.gamma_2 * block.mlp(block.norm2(tokens))
        if drop_path is not None:
            residual = residual * drop_path.mlp.to(residual.dtype)
        return tokens + residual

    def initialize(self, block: Any) -> None:
        super().initialize(block)
        initialize_layer_scales(block)


def _project_parts(attention: Any, tokens: Tensor, part: slice) -> tuple[Tensor, ...]:
    """A slice of the fused qkv projection: (B, N, D) → parts × (B, heads, N, d)."""
    weight, bias = attention.qkv.weight[part], attention.qkv.bias
    projected = F.linear(tokens, weight, None if bias is None else bias[part])
    width = attention.qkv.in_features // attention.num_heads
    return projected.unflatten(-1, (-1, attention.num_heads, width)).permute(2, 0, 3, 1, 4).unbind(0)
