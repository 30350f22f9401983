"""PWCA with distractors that are not in the batch, and with noise in their place, against explicit attention."""

import pytest
import torch
from torch.nn import functional as F

from dual_cross_attention import InputError
from dual_cross_attention.attention import stacked_attention
from tests.helpers import random_images, tiny_model


@pytest.mark.parametrize("options", [{}, {"distractor_stream": "sa"}, {"pwca_blocks": 1}, {"pwca_blocks": 2}], ids=str)
def test_a_pair_is_what_two_images_of_a_batch_are(options):
    """Logits and gradients are those of a batch of both whose distractors are each other."""
    model = tiny_model("full", sharpness=4, **options).double().train()
    images, others = random_images(6).double().split(3)
    labels = torch.tensor([0, 3, 1])
    seen = []
    for out in (
        model(images, None, None, others),
        model(torch.cat([images, others]), torch.tensor([3, 4, 5, 0, 1, 2])),
    ):
        model.zero_grad()
        sum(F.cross_entropy(logits[:3], labels) for logits in out.logits.values()).backward()
        seen.append((out, [parameter.grad.clone() for parameter in model.parameters()]))
    (ours, ours_grad), (expected, expected_grad) = seen
    assert list(ours.logits) == ["sa", "pwca", "glca"] and ours.rollout.shape[0] == 3
    for name, logits in ours.logits.items():
        assert logits.shape == (3, 5)
        torch.testing.assert_close(logits, expected.logits[name][:3])
    torch.testing.assert_close(ours.rollout, expected.rollout[:3])
    for one, other in zip(ours_grad, expected_grad, strict=True):
        torch.testing.assert_close(one, other)


def test_other_distractors_change_pwca_alone_and_only_in_training():
    model = tiny_model("full", sharpness=4).train()
    images, others = random_images(6).split(3)
    one, other = (model(images, None, None, each).logits for each in (others, others.flip(0)))
    assert torch.equal(one["sa"], other["sa"]) and torch.equal(one["glca"], other["glca"])
    assert not torch.allclose(one["pwca"], other["pwca"])
    assert "pwca" not in model(images, None, ["sa"], others).logits
    assert torch.equal(model.eval()(images, None, None, others).logits["sa"], one["sa"])
    with pytest.raises(InputError, match="distractor_images"):
        model.train()(images, None, None, others[:2])


def test_noise_in_place_of_keys_and_values(monkeypatch):
    """One target and head at a time, in every block."""
    model = tiny_model("sa_pwca", sharpness=4, distractor_noise=True).double().train()
    sampled, randn = [], torch.randn

    def keep(*shape, **options):
        sampled.append(randn(*shape, **options).double())
        return sampled[-1]

    images = random_images(2).double()
    monkeypatch.setattr(torch, "randn", keep)
    torch.manual_seed(3)
    ours = model(images).logits["pwca"]
    vit = model.backbone
    assert [noise.shape for noise in sampled] == [(2, 2, 3, 25, 16)] * len(vit.blocks)
    assert abs(torch.cat(sampled).mean()) < 0.1 and abs(torch.cat(sampled).std() - 1) < 0.1
    assert not torch.equal(sampled[0], sampled[1])
    tokens = vit._pos_embed(vit.patch_embed(images))
    for block, (noise_key, noise_value) in zip(vit.blocks, sampled, strict=True):
        query, key, value = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
        rows = []
        for i in range(2):
            heads = []
            for h in range(3):
                keys = torch.cat([key[i, h], noise_key[i, h]])
                weights = (query[i, h] @ keys.T / 4).softmax(-1)
                heads.append(weights @ torch.cat([value[i, h], noise_value[i, h]]))
            rows.append(torch.cat(heads, dim=-1))
        tokens = tokens + block.attn.proj(torch.stack(rows))
        tokens = tokens + block.mlp(block.norm2(tokens))
    torch.testing.assert_close(ours, vit.head(vit.norm(tokens)[:, 0]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_noise_is_seeded_and_a_batch_of_one_will_do(checkpointing):
    model = tiny_model("full", sharpness=4, distractor_noise=True).train()
    model.set_grad_checkpointing(checkpointing)
    seen = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model.zero_grad()
        logits = model(random_images(1)).logits["pwca"]
        logits.square().sum().backward()
        seen.append((logits.detach(), model.backbone.blocks[0].attn.qkv.weight.grad.clone()))
    assert torch.equal(seen[0][0], seen[1][0]) and torch.equal(seen[0][1], seen[1][1])
    assert not torch.allclose(seen[0][0], seen[2][0])


def test_noise_of_the_stack_has_the_dtype_of_the_keys():
    from timm.models.vision_transformer import Attention

    query, key, value = torch.randn(3, 4, 2, 5, 4).bfloat16()
    out = stacked_attention(
        Attention(8, 2), query, key, value, torch.arange(2), distractor_noise=torch.randn(2, 2, 2, 5, 4)
    )
    assert out.dtype == torch.bfloat16 and out.shape == (4, 5, 8)
