"""Maps against the product of attention matrices, written out in float64 from timm's own modules."""

import copy

import pytest
import torch
from torch import Tensor

from dual_cross_attention import InputError, create_model
from dual_cross_attention.explanation.maps import attention_maps
from tests.explanation.attention_oracle import attention_matrices, class_row, rollout_row
from tests.helpers import TINY_VIT, random_images, tiny_model

SQUARE, WIDE = (32, 32), (32, 48)


@pytest.mark.parametrize("size", [SQUARE, WIDE])
@pytest.mark.parametrize("batch", [1, 3])
def test_maps_are_the_explicit_products(size, batch):
    model, images = tiny_model(img_size=size, sharpness=4).eval(), random_images(batch, size)
    maps = attention_maps(model, images)
    matrices, tokens = attention_matrices(model.backbone, images)
    grid = size[0] // 8, size[1] // 8

    rollout = rollout_row(matrices)[:, 1:].view(batch, *grid)
    assert maps.rollout.shape == rollout.shape
    torch.testing.assert_close(maps.rollout.double(), rollout, rtol=1e-4, atol=1e-6)
    layers = torch.stack([matrix[:, 0, 1:] for matrix in matrices], 1).view(batch, 3, *grid)
    torch.testing.assert_close(maps.layers.double(), layers, rtol=1e-4, atol=1e-6)
    glca = class_row(model.glca_block.block, tokens)[:, 1:].view(batch, *grid)
    torch.testing.assert_close(maps.glca.double(), glca, rtol=1e-4, atol=1e-6)
    product = rollout * glca / (rollout * glca).sum((1, 2), keepdim=True)
    torch.testing.assert_close(maps.map("product").double(), product, rtol=1e-3, atol=1e-6)

    number = round(0.1 * grid[0] * grid[1])
    for row in range(batch):
        largest = rollout[row].flatten().topk(number).indices
        assert maps.local[row].flatten().nonzero()[:, 0].tolist() == sorted(largest.tolist())


@pytest.mark.parametrize("local_queries", ["local_only", "cross", "random", "penultimate"])
def test_every_choice_of_local_tokens(local_queries):
    model, images = tiny_model(local_queries=local_queries, local_ratio=0.3, sharpness=4).eval(), random_images(2)
    maps = attention_maps(model, images)
    matrices, tokens = attention_matrices(model.backbone, images)
    torch.testing.assert_close(maps.rollout.flatten(1).double(), rollout_row(matrices)[:, 1:], rtol=1e-4, atol=1e-6)
    for row, is_local in enumerate(maps.local.flatten(1)):
        assert is_local.sum() == round(0.3 * 24)
        local = tokens[row, 1:][is_local]
        if local_queries == "cross":
            expected = cross_attention(model.glca_block.block, tokens[row, :1], local).mean(0)
            assert maps.glca[row].flatten()[~is_local].abs().max() == 0
        elif local_queries == "local_only":
            expected = class_row(model.glca_block.block, torch.cat([tokens[row, :1], local])[None])[0, 1:]
            assert maps.glca[row].flatten()[~is_local].abs().max() == 0
        else:
            expected = class_row(model.glca_block.block, tokens[row][None])[0, 1:][is_local]
        torch.testing.assert_close(maps.glca[row].flatten()[is_local].double(), expected, rtol=1e-4, atol=1e-6)


def cross_attention(block, class_token: Tensor, local: Tensor) -> Tensor:
    """softmax(q Kᵀ/√d) of CLS over the local tokens, (heads, n), with loops over heads."""
    block = copy.deepcopy(block).double()
    with torch.no_grad():
        query, key, _ = block.attn.qkv(block.norm1(torch.cat([class_token, local]))).chunk(3, dim=-1)
    d = block.attn.head_dim
    return torch.stack(
        [
            (key[1:, h * d : (h + 1) * d] @ query[0, h * d : (h + 1) * d] / d**0.5).softmax(0)
            for h in range(block.attn.num_heads)
        ]
    )


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_several_prefix_tokens(name):
    torch.manual_seed(0)
    model = create_model(name, 5, img_size=WIDE, **TINY_VIT).eval()
    images = random_images(2, WIDE)
    maps, prefix = attention_maps(model, images), model.backbone.num_prefix_tokens
    matrices, tokens = attention_matrices(model.backbone, images)
    assert prefix > 1 and maps.rollout.shape == maps.glca.shape == (2, 4, 6)
    torch.testing.assert_close(
        maps.rollout.flatten(1).double(), rollout_row(matrices)[:, prefix:], rtol=1e-4, atol=1e-6
    )
    glca = class_row(model.glca_block.block, tokens)[:, prefix:]
    torch.testing.assert_close(maps.glca.flatten(1).double(), glca, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ablation", ["full", "sa_glca", "sa_pwca", "sa_only"])
def test_every_ablation_has_the_logits_of_predict(ablation):
    model, images = tiny_model(ablation).eval(), random_images(2)
    maps, expected = attention_maps(model, images), model.predict_logits(images)
    assert maps.logits.keys() == expected.keys()
    for name, logits in expected.items():
        torch.testing.assert_close(maps.logits[name], logits, rtol=1e-5, atol=1e-6)
    has_glca = "glca" in expected
    assert (maps.glca is not None) == (maps.local is not None) == has_glca
    if not has_glca:
        with pytest.raises(InputError, match="GLCA"):
            maps.map("product")


def test_several_glca_blocks():
    model, images = tiny_model(glca_blocks=2).eval(), random_images(2)
    maps = attention_maps(model, images)
    torch.testing.assert_close(maps.logits["glca"], model.predict_logits(images)["glca"], rtol=1e-5, atol=1e-6)
    assert maps.glca.shape == (2, 4, 6)


def test_no_glca_map_before_glca_is_trained():
    model = tiny_model().eval()
    model.glca_is_trained = False
    maps = attention_maps(model, random_images(1))
    assert maps.glca is None and maps.local is None and maps.logits.keys() == {"sa"}


def test_a_model_in_training_mode_and_an_empty_batch_are_refused():
    with pytest.raises(InputError, match="eval"):
        attention_maps(tiny_model().train(), random_images(1))
    with pytest.raises(InputError, match="empty"):
        attention_maps(tiny_model().eval(), random_images(2)[:0])
