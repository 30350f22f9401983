"""CaiT's class-attention layers as a read-out: a class token attends to itself and the patch tokens, which stay.

Source: Touvron et al. 2021, "Going deeper with Image Transformers" (arXiv 2103.17239), section 3.

Rollout goes through them as through any layer: 0.5 · E + 0.5 · S for the class token's row, E for the patch tokens',
which no layer changes. GLCA has layers and a class token of its own, which read the tokens that it computes.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from timm.models import named_apply
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from dual_cross_attention.backbones.readout import Pool, ReadOut

LAYER_SCALE = 1e-4
"""timm's default. What a model started with (CaiT-XS24: 1e-5) is not recorded in its layers."""


class ClassAttention(ReadOut):
    """The class token after the class-attention layers and the norm."""

    name = "class attention"
    reads_patches = True

    def normalize(self, backbone: Any, tokens: Tensor) -> Tensor:
        return backbone.norm(_attend(backbone.blocks_token_only, backbone.cls_token, tokens))

    def feature(self, backbone: Any, normed: Tensor) -> Tensor:
        return normed[:, 0]

    def logits(self, backbone: Any, normed: Tensor, feature: Tensor) -> Tensor:
        return backbone.forward_head(normed)

    def start_row(self, backbone: Any, tokens: Tensor, normed: Tensor) -> Tensor:
        return class_row(backbone.blocks_token_only, backbone.cls_token, tokens)

    def make_pool(self, backbone: Any, glca_init: str) -> "ClassAttentionPool":
        pool = ClassAttentionPool(backbone.cls_token, backbone.blocks_token_only)
        if glca_init == "random":
            pool.initialize()
        return pool


CLASS_ATTENTION = ClassAttention()


class ClassAttentionPool(Pool):
    """A class token and class-attention layers of GLCA's own; arguments are copied."""

    def __init__(self, cls_token: nn.Parameter, blocks_token_only: nn.ModuleList):
        super().__init__()
        self.cls_token, self.blocks_token_only = copy.deepcopy((cls_token, blocks_token_only))

    def initialize(self) -> None:
        """Initializes the weights anew, as timm does."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for layer in self.blocks_token_only:
            named_apply(init_weights_vit_timm, layer)
            initialize_layer_scales(layer)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    def forward(self, tokens: Tensor, norm: nn.Module) -> Tensor:
        return norm(_attend(self.blocks_token_only, self.cls_token, tokens))[:, 0]

    def row(self, tokens: Tensor, norm: nn.Module) -> Tensor:
        return class_row(self.blocks_token_only, self.cls_token, tokens)


@torch.no_grad()
def class_row(layers: Iterable[Any], class_token: Tensor, tokens: Tensor) -> Tensor:
    """The class token's row of rollout through class-attention layers, over the patch tokens: (B, N) float32.

    Rows sum to 1 without the share of the class token itself.

    Args:
        class_token: (1, 1, D), as it enters the first layer.
        tokens: (B, N, D) patch tokens.
    """
    weights, class_token = [], class_token.expand(tokens.shape[0], -1, -1)
    for layer in layers:
        normed, attention = layer.norm1(torch.cat([class_token, tokens], dim=1)), layer.attn
        query, key = (
            projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for projected in (attention.q(normed[:, :1]), attention.k(normed))
        )
        with torch.autocast(tokens.device.type, enabled=False):
            scores = query.float() @ key.float().transpose(-2, -1) * attention.scale
        weights.append(scores.softmax(dim=-1).mean(1)[:, 0])  # (B, 1 + N)
        class_token = layer(tokens, class_token)
    of_class, of_patches = torch.ones_like(weights[-1][:, :1]), torch.zeros_like(weights[-1][:, 1:])
    for attended in reversed(weights):
        of_patches = of_patches + 0.5 * of_class * attended[:, 1:]
        of_class = 0.5 * of_class + 0.5 * of_class * attended[:, :1]
    return of_patches


def initialize_layer_scales(layer: Any) -> None:
    """Sets both layer scales of a patch block or class-attention layer to what timm starts with."""
    nn.init.constant_(layer.gamma_1, LAYER_SCALE)
    nn.init.constant_(layer.gamma_2, LAYER_SCALE)


def _attend(layers: Iterable[nn.Module], class_token: Tensor, tokens: Tensor) -> Tensor:
    """(B, N, D) patch tokens → the class token after the layers, (B, 1, D)."""
    class_token = class_token.expand(tokens.shape[0], -1, -1)
    for layer in layers:
        class_token = layer(tokens, class_token)
    return class_token
