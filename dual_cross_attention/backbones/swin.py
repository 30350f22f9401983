"""timm's Swin Transformers: windowed attention with a relative position bias, over grids that patch merging halves.

Source: Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (arXiv 2103.14030).
The functions follow the order of `timm.models.swin_transformer.SwinTransformerBlock` and `WindowAttention`.

Notable:
- tokens are (B, rows · columns, D) of a stage's grid, and no prefix. Between stages patch merging halves the grid, so
  rollout is computed over the blocks of the last stage;
- a block divides tokens into windows of its own, shifted in every second block. In PWCA, the queries of an image's
  window w attend to the keys of its own window w and of the distractor's, with the same bias and mask for both;
- where the grid is no multiple of the window, timm pads it with zeros after the norm. The padding has the biases of the
  projection as keys and values, and takes part in the softmax;
- a block of GLCA has one window, which is the whole grid of the last stage, so that local tokens attend to all tokens.
  A copy of a backbone's block gets its table of relative positions resized by timm, if its window is smaller.
"""

import warnings
from collections.abc import Sequence
from typing import Any, cast

from timm.layers import ClassifierHead, PatchEmbed, trunc_normal_
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

from dual_cross_attention.backbones.drop_path import DropPathMasks
from dual_cross_attention.backbones.family import BackboneFamily, Part, repeat_rows, split_heads
from dual_cross_attention.backbones.readout import ReadOut, TokenPool, pool_row
from dual_cross_attention.backbones.windows import Windows


class GridAverage(ReadOut):
    """The mean of all tokens of the last stage, which timm computes in its head."""

    name = "average"
    reads_patches = True

    def feature(self, backbone: Any, normed: Tensor) -> Tensor:
        return normed.mean(dim=1)

    def logits(self, backbone: Any, normed: Tensor, feature: Tensor) -> Tensor:
        return backbone.head.fc(backbone.head.drop(feature))

    def start_row(self, backbone: Any, tokens: Tensor, normed: Tensor) -> Tensor:
        return pool_row(None, normed, 0)

    def make_pool(self, backbone: Any, glca_init: str) -> TokenPool:
        return TokenPool(None, nn.Identity(), 0)

    def classifier(self, backbone: Any) -> nn.Module:
        return cast(nn.Module, backbone.head.fc)

    def drop(self, backbone: Any, feature: Tensor) -> Tensor:
        return cast(Tensor, backbone.head.drop(feature))


GRID_AVERAGE = GridAverage()


class Swin(BackboneFamily):
    """Pre-norm blocks with attention within windows, in stages."""

    name = "swin"
    timm_modules = ("swin_transformer",)
    summary = "Swin Transformers (not V2): attention within windows, in stages"
    is_windowed = True

    # the whole backbone

    def reason_against(self, backbone: nn.Module) -> str | None:
        if type(backbone) is not SwinTransformer:
            return f"it is a {type(backbone).__name__}, not a SwinTransformer"
        if not all(map(self.runs, self.blocks(backbone))):
            return f"its blocks are {type(self.blocks(backbone)[0]).__name__}s"
        if backbone.dynamic_img_size:
            return "strict_img_size=False or dynamic_img_size=True: windows and GLCA's positions are those of one size"
        stem, head = backbone.patch_embed, backbone.head
        if not isinstance(stem, PatchEmbed):
            return f"its patch embedding is a {type(stem).__name__}"
        merging = [stage.downsample for stage in backbone.layers[1:]]
        if not all(type(each) is PatchMerging for each in merging):
            return "its stages are not joined by patch merging"
        return None if isinstance(head, ClassifierHead) else f"its head is a {type(head).__name__}"

    def runs(self, block: Any) -> bool:
        return type(block) is SwinTransformerBlock and type(block.attn) is WindowAttention

    def blocks(self, backbone: Any) -> Sequence[nn.Module]:
        return [block for stage in backbone.layers for block in stage.blocks]

    def read_out(self, backbone: Any) -> ReadOut | None:
        return GRID_AVERAGE if backbone.global_pool == "avg" else None

    def token_width(self, backbone: Any) -> int:
        width: int = backbone.patch_embed.proj.out_channels
        return width

    def num_prefix_tokens(self, backbone: Any) -> int:
        return 0

    def grid(self, backbone: Any, img_size: tuple[int, int]) -> tuple[int, int]:
        rows, columns = backbone.layers[-1].output_resolution
        return rows, columns

    def embed(self, backbone: Any, images: Tensor) -> tuple[Tensor, None]:
        return backbone.patch_embed(images).flatten(1, 2), None

    def enter(self, backbone: Any, place: int, tokens: Tensor) -> Tensor:
        for stage in backbone.layers:
            if place == 0 and stage is not backbone.layers[0]:
                return stage.downsample(tokens.unflatten(1, stage.input_resolution)).flatten(1, 2)
            place -= len(stage.blocks)
            if place < 0:
                break
        return tokens

    def first_on_last_grid(self, backbone: Any) -> int:
        return len(self.blocks(backbone)) - len(backbone.layers[-1].blocks)

    def layer_parts(self, backbone: Any) -> list[list[Part]]:
        parts: list[list[Part]] = []
        for stage in backbone.layers:
            first, *others = stage.blocks
            parts += [[stage.downsample, first], *([block] for block in others)]
        return parts

    # a block

    def windows(self, block: Any) -> Windows | None:
        grid, window, shift = block.input_resolution, block.window_size, block.shift_size
        is_whole = tuple(grid) == tuple(window) and not any(shift)
        return None if is_whole else Windows(tuple(grid), tuple(window), tuple(shift))

    def heads(self, block: Any) -> tuple[int, int]:
        attention = block.attn
        return attention.num_heads, attention.qkv.out_features // 3 // attention.num_heads

    def key_shape(self, block: Any, num_tokens: int) -> tuple[int, int, int]:
        (heads, head_dim), windows = self.heads(block), self.windows(block)
        return (heads, num_tokens, head_dim) if windows is None else (windows.number * heads, windows.area, head_dim)

    def bias(self, block: Any, queries: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        attention, windows = block.attn, self.windows(block)
        table, index = attention.relative_position_bias_table, attention.relative_position_index
        if queries is not None:
            index = index[queries]
            if keys is not None:
                index = index.gather(2, keys[:, None].expand(-1, index.shape[1], -1))
            return table[index].permute(0, 3, 1, 2)
        of_heads = table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)  # (heads, n, n)
        if windows is None:
            return of_heads.unsqueeze(0)
        if block.attn_mask is None:
            return of_heads.repeat(windows.number, 1, 1).unsqueeze(0)
        return (of_heads + block.attn_mask.unsqueeze(1)).flatten(0, 1).unsqueeze(0)

    def project(self, block: Any, normed: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        attention, windows = block.attn, self.windows(block)
        projected = attention.qkv(normed.unsqueeze(1) if windows is None else windows.split(normed))
        parts = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        query, key, value = parts.flatten(2, 3).unbind(0)  # (B, windows · heads, n, d)
        return query, key, value

    def project_query(self, block: Any, normed: Tensor, positions: Tensor | None) -> Tensor:
        return split_heads(_project_part(block.attn, normed, 0, 1), block.attn.num_heads)

    def project_key_value(self, block: Any, normed: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        key, value = _project_part(block.attn, normed, 1, 3).chunk(2, dim=-1)
        return split_heads(key, block.attn.num_heads), split_heads(value, block.attn.num_heads)

    def close(
        self, block: Any, tokens: Tensor, normed: Tensor, attended: Tensor, drop_path: DropPathMasks | None
    ) -> Tensor:
        attention, windows = block.attn, self.windows(block)
        if windows is not None:
            attended = windows.join(attended.unflatten(-1, (windows.number, -1)).transpose(1, 2))
        residual = attention.proj_drop(attention.proj(attended))
        if drop_path is not None:
            residual = residual * drop_path.attention.to(residual.dtype)
        tokens = repeat_rows(tokens, attended.shape[0]) + residual
        residual = block.mlp(block.norm2(tokens))
        if drop_path is not None:
            residual = residual * drop_path.mlp.to(residual.dtype)
        return tokens + residual

    def copy_for_glca(self, backbone: Any, block: nn.Module) -> nn.Module:
        copied: Any = super().copy_for_glca(backbone, block)
        grid = tuple(backbone.layers[-1].output_resolution)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, about timm's interpolation of the table
            copied.set_input_size(grid, grid, always_partition=False)
        return copied

    def initialize(self, block: Any) -> None:
        super().initialize(block)
        trunc_normal_(block.attn.relative_position_bias_table, std=0.02)


def _project_part(attention: Any, tokens: Tensor, first: int, end: int) -> Tensor:
    """Applies parts of the fused projection of query, key and value, which are parts 0, 1 and 2."""
    width = attention.qkv.out_features // 3
    part, bias = slice(first * width, end * width), attention.qkv.bias
    return F.linear(tokens, attention.qkv.weight[part], None if bias is None else bias[part])
