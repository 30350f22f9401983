"""timm's hybrids: a Vision Transformer over the feature map of a ResNet (R50+ViT-B/16, R26+ViT-S/32, …).

timm reports a patch size in cells of the feature map (1×1 for R50+ViT-B/16, whose cells are 16×16 pixels).
"""

import math
from typing import Any

from timm.layers import HybridEmbed
from torch import nn

from dual_cross_attention.backbones.plain_vit import PlainViT


class Hybrid(PlainViT):
    """Blocks as of plain ViTs; the stem is a convolutional network."""

    name = "hybrid"
    timm_modules = ("vision_transformer_hybrid",)
    summary = "ViTs over the feature map of a ResNet: R50+ViT-B/16, R26+ViT-S/32"

    def reason_against_stem(self, backbone: Any) -> str | None:
        stem = backbone.patch_embed
        return None if isinstance(stem, HybridEmbed) else f"its patch embedding is a {type(stem).__name__}"

    def patch_size(self, backbone: Any) -> tuple[int, int]:
        height, width = super().patch_size(backbone)
        rows, columns = cell_size(backbone.patch_embed)
        return height * rows, width * columns


def cell_size(stem: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels of a cell of the feature map that patches are made of; 1×1 without one.

    Convolutional networks halve the map; where an image is no multiple of the cell, timm rounds the number of cells up.
    """
    if not isinstance(stem, HybridEmbed):
        return 1, 1
    height, width = (
        1 << round(math.log2(side / cells)) for side, cells in zip(stem.img_size, stem.feature_size, strict=True)
    )
    return height, width
