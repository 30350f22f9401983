"""Parameters and FLOPs of the dual model, against the paper's and a count by hand."""

import pytest
import torch

from benchmarks.measure import count_flops
from dual_cross_attention import create_model
from dual_cross_attention.models import ABLATIONS
from tests.helpers import TINY_VIT, random_images


def flops(function):
    with torch.no_grad():
        return count_flops(function)


def test_parameters_and_flops_of_glca_are_the_papers():
    """DeiT-Tiny at 448 x 448 on CUB: +9 % parameters and +2 % FLOPs in the paper's table."""
    full, plain = (
        create_model("deit_tiny_patch16_224", 200, img_size=448, ablation=ablation).eval()
        for ablation in ("sa_glca", "sa_only")
    )
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (full, plain)]
    assert 0.08 <= counts[0] / counts[1] - 1 <= 0.095

    inputs, tokens = torch.randn(1, 3, 448, 448), torch.randn(1, 785, 192)
    local = torch.arange(78).unsqueeze(0)
    glca = flops(lambda: full.glca_head(full.glca_norm(full.glca_block(tokens, local))[:, 0]))
    assert 0.01 <= glca / flops(lambda: plain.backbone(inputs)) <= 0.025


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_unused_tokens_are_not_computed(ablation):
    """FLOPs of a training pass, against a count by hand of what each branch needs."""
    model = create_model("vit_tiny_patch16_224", 5, img_size=128, ablation=ablation, **TINY_VIT).train()
    batch, tokens, dim, depth = 2, 257, 48, 3
    linear, qkv = 12 * dim * dim * tokens, 3 * dim * dim * tokens  # multiplications of a block's linear layers
    attention = 2 * tokens * tokens * dim
    sa_last = dim * dim * (2 * tokens + 10) + 2 * tokens * dim  # key and value of all; the rest of CLS alone
    expected = (depth - 1) * (linear + attention) + (linear + attention if model.has_glca else sa_last)
    if model.has_pwca:
        expected += (depth - 1) * (linear + 2 * attention) - qkv + sa_last + 2 * tokens * dim
    if model.has_glca:
        local = 1 + round(0.1 * 256)
        expected += dim * dim * (2 * tokens + 10 * local) + 2 * local * tokens * dim  # the block
        expected += (depth - 1) * tokens * tokens * dim + tokens * dim  # rollout's scores; the last layer's are one row
        expected += ((depth - 1) * 3 * tokens + 3) * tokens  # its vector times the attention of each head
    expected += dim * 3 * 8 * 8 * 256 + len(model.branches) * 5 * dim  # stem and heads
    counted = flops(lambda: model(random_images(batch, (128, 128)))) / (2 * batch)
    assert counted == pytest.approx(expected, rel=2e-3)


def test_sa_alone_costs_less_than_timms_forward():
    model = create_model("deit_tiny_patch16_224", 200, img_size=448).eval()
    inputs = torch.randn(1, 3, 448, 448)
    assert flops(lambda: model.predict(inputs, branch="sa")) < 0.94 * flops(lambda: model.backbone(inputs))
