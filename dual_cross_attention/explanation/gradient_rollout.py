"""Gradient × rollout: attention weighted by its gradient, accumulated through all layers of SA.

Source: Chefer, Gur & Wolf, "Generic Attention-model Explainability" (ICCV 2021), for self-attention:
Āₗ = mean over heads of (∇Aₗ ⊙ Aₗ)⁺, and R ← R + Āₗ R. Only CLS's row is computed, from the last layer to the first:
r ← r + r Āₗ.

Notable:
- ∇Aₗ is the gradient of the attention weights. With the output Oₗ = Aₗ Vₗ of a head, it is ∇Oₗ Vₗᵀ, so autograd only
  holds ∇Oₗ, and attention is fused; products of tokens × tokens are formed outside of autograd, a layer at a time;
- it needs a backward pass: 2.5 times the time of the maps of `maps.py`, on a CPU at 96×96.
"""

from collections.abc import Sequence
from typing import cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from dual_cross_attention.backbones.opened_block import attend, attention_of, finish_block, project
from dual_cross_attention.backbones.plain_vit import embed_patches
from dual_cross_attention.explanation.maps import patch_grid
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT


def gradient_rollout(model: DualCrossAttentionViT, images: Tensor, target: Tensor) -> Tensor:
    """The gradient × rollout map of SA's logit of a class: (B, h, w) float32; not negative.

    Args:
        model: a classifier in evaluation mode. Its parameters get no gradient.
        images: (B, 3, H, W) normalized.
        target: (B,) class of each image.
    """
    backbone = model.backbone
    queries, keys, values, attended = [], [], [], []
    with torch.enable_grad():
        tokens = embed_patches(backbone, images.detach().requires_grad_())
        for block in cast(Sequence[Block], backbone.blocks):
            attention, normed = attention_of(block), block.norm1(tokens)
            query, key, value = project(attention, normed)
            out = attend(attention, query, key, value)
            for kept, tensor in zip((queries, keys, values, attended), (query, key, value, out), strict=True):
                kept.append(tensor)
            tokens = finish_block(block, tokens, normed, out, None)
        logits = backbone.forward_head(backbone.norm(tokens[:, : backbone.num_prefix_tokens]))
        gradients = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), attended)

    row = tokens.new_zeros(tokens.shape[:2], dtype=torch.float32)
    row[:, 0] = 1.0  # e_CLS
    layers = zip(reversed(queries), reversed(keys), reversed(values), reversed(gradients), strict=True)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        for query, key, value, gradient in layers:
            heads = gradient.float().unflatten(-1, (query.shape[1], -1)).transpose(1, 2)  # (B, heads, T, d)
            weights = (query.float() @ key.float().transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)
            weights *= heads @ value.float().transpose(-2, -1)
            row = row + (row[:, None] @ weights.clamp(min=0).mean(1))[:, 0]
    return row[:, backbone.num_prefix_tokens :].unflatten(1, patch_grid(model, images))
