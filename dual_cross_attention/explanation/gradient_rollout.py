"""Gradient × rollout: attention weighted by its gradient, accumulated through all layers of SA.

Source: Chefer, Gur & Wolf, "Generic Attention-model Explainability" (ICCV 2021), for self-attention:
Āₗ = mean over heads of (∇Aₗ ⊙ Aₗ)⁺, and R ← R + Āₗ R. Only CLS's row is computed, from the last layer to the first:
r ← r + r Āₗ.

Notable:
- ∇Aₗ is the gradient of the attention weights. With the output Oₗ = Aₗ Vₗ of a head, it is ∇Oₗ Vₗᵀ, so autograd only
  holds ∇Oₗ, and attention is fused; products of tokens × tokens are formed outside of autograd, a layer at a time;
- where CLS is not among the tokens or not classified, the row starts as the weights with which the read-out reads them;
- of talking heads, A is the softmax between the two mixings; its gradient goes through the second one;
- it needs a backward pass: 2.5 times the time of the maps of `maps.py`, on a CPU at 96×96.
"""

import torch
from torch import Tensor

from dual_cross_attention.attention.rollout import AttentionLayer, attention_weights
from dual_cross_attention.backbones.talking_heads import mix_heads
from dual_cross_attention.explanation.maps import patch_grid
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT


def gradient_rollout(model: DualCrossAttentionViT, images: Tensor, target: Tensor) -> Tensor:
    """The gradient × rollout map of SA's logit of a class: (B, h, w) float32; not negative.

    Args:
        model: a classifier in evaluation mode. Its parameters get no gradient.
        images: (B, 3, H, W) normalized.
        target: (B,) class of each image.
    """
    backbone, family, read_out = model.backbone, model.family, model.read_out
    prefix, first = family.num_prefix_tokens(backbone), family.first_on_last_grid(backbone)
    layers: list[AttentionLayer] = []
    values, attended, mixings = [], [], []
    with torch.enable_grad():
        tokens, positions = family.embed(backbone, images.detach().requires_grad_())
        for place, block in enumerate(family.blocks(backbone)):
            tokens = family.enter(backbone, place, tokens)
            normed = family.normalize(block, tokens)
            query, key, value = family.project(block, normed, family.positions_of_block(positions, place))
            bias = family.bias(block)
            out = family.attend(block, query, key, value, bias)
            if place >= first:
                layers.append(AttentionLayer(query, key, family.score_mixing(block), bias, family.windows(block)))
                mixings.append(family.weight_mixing(block))
                values.append(value)
                attended.append(out)
            tokens = family.close(block, tokens, normed, out, None)
        read = tokens if read_out.reads_patches else tokens[:, : model.num_prefix_tokens]
        normed = read_out.normalize(backbone, read)
        logits = read_out.logits(backbone, normed, read_out.feature(backbone, normed))
        gradients = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), attended)

    start = read_out.start_row(backbone, tokens.detach(), normed.detach())
    if start is None:
        start = tokens.new_zeros(tokens.shape[:2], dtype=torch.float32)
        start[:, 0] = 1.0  # e_CLS
    row = start
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        for of_layer in zip(*map(reversed, (layers, values, gradients, mixings)), strict=True):
            row = row + (row[:, None] @ _weighted_attention(*of_layer))[:, 0]
    return row[:, prefix:].unflatten(1, patch_grid(model, images))


def _weighted_attention(layer: AttentionLayer, value: Tensor, gradient: Tensor, mixing: Tensor | None) -> Tensor:
    """Āₗ, the mean over heads of (∇Aₗ ⊙ Aₗ)⁺: (B, T, T).

    Args:
        value: (B, heads, T, d).
        gradient: (B, T, heads · d), of the attention's output.
        mixing: of the attention weights of heads, after the softmax, see `BackboneFamily.weight_mixing`.
    """
    query, key, score_mixing, bias, windows = layer
    heads = gradient.float().unflatten(-1, (query.shape[1], -1)).transpose(1, 2)  # (B, heads, T, d)
    weights = attention_weights(query.float(), key.float(), score_mixing, bias)
    of_attention = heads @ value.float().transpose(-2, -1)  # ∇A
    if mixing is not None:
        of_attention = mix_heads(of_attention, mixing.float().T)
    weights *= of_attention
    weights = weights.clamp(min=0)
    return weights.mean(1) if windows is None else windows.scatter(weights.unflatten(1, (windows.number, -1)).mean(2))
