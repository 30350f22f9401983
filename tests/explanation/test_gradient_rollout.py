"""Gradient × rollout against its definition, with attention matrices in autograd."""

import copy

import pytest
import torch

from dual_cross_attention.explanation.gradient_rollout import gradient_rollout
from tests.helpers import random_images, tiny_model


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_it_is_the_product_of_the_definition(size):
    model, images, target = tiny_model(img_size=size, sharpness=4).eval(), random_images(2, size), torch.tensor([3, 0])
    found = gradient_rollout(model, images, target)
    assert all(parameter.grad is None for parameter in model.parameters())

    backbone, matrices = copy.deepcopy(model.backbone).double(), []

    def keep(_, inputs, out):
        out.retain_grad()
        matrices.append(out)

    for block in backbone.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(keep)
    logits = backbone(images.double())
    (logits[0, 3] + logits[1, 0]).backward()
    relevance = torch.eye(matrices[0].shape[-1], dtype=torch.float64).repeat(2, 1, 1)
    for matrix in matrices:  # (B, heads, T, T)
        weighted = (matrix.grad * matrix.detach()).clamp(min=0).mean(1)
        relevance = relevance + weighted @ relevance
    expected = relevance[:, 0, 1:].view(2, size[0] // 8, size[1] // 8)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-7)
    assert found.max() > 0
