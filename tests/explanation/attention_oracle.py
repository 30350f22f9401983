"""Attention matrices in float64, read off timm's own modules, and their product written out."""

import copy

import torch
from torch import Tensor


def attention_matrices(backbone, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Of each layer (B, T, T), mean over heads, and the tokens that leave the last block; float64, by timm."""
    backbone = copy.deepcopy(backbone).double()
    matrices, tokens = [], []
    for block in backbone.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, inputs, out: matrices.append(out.mean(1)))
    backbone.blocks[-1].register_forward_hook(lambda _, inputs, out: tokens.append(out))
    with torch.no_grad():
        backbone(images.double())
    return matrices, tokens[0]


def class_row(block, tokens: Tensor) -> Tensor:
    """CLS's attention in a timm block over these tokens, mean over heads: (B, T) float64."""
    block, found = copy.deepcopy(block).double(), []
    block.attn.fused_attn = False
    block.attn.attn_drop.register_forward_hook(lambda _, inputs, out: found.append(out.mean(1)[:, 0]))
    with torch.no_grad():
        block(tokens)
    return found[0]


def rollout_row(matrices: list[Tensor]) -> Tensor:
    """CLS's row of the product of ½ S + ½ E."""
    product = torch.eye(matrices[0].shape[-1], dtype=torch.float64)
    for matrix in matrices:
        product = (0.5 * matrix + 0.5 * torch.eye(matrix.shape[-1], dtype=torch.float64)) @ product
    return product[:, 0]
