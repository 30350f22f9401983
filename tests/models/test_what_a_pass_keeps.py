"""What a forward pass keeps: for the backward pass, and of queries and keys for rollout."""

import pytest
import torch

from dual_cross_attention import create_model
from dual_cross_attention.attention import attention_rollout
from dual_cross_attention.models import ABLATIONS
from dual_cross_attention.models.stacked_block import last_block, stacked_block
from tests.helpers import TINY_VIT, random_images, tiny_model


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_autograd_keeps_nothing_of_tokens_by_tokens(ablation, checkpointing):
    """With 257 tokens no other size comes near: whatever has N·N entries a head would be an attention matrix."""
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", 5, img_size=128, ablation=ablation, **TINY_VIT).train()
    model.set_grad_checkpointing(checkpointing)
    tokens, saved = 257, []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(random_images(2, (128, 128)))
        sum(logits.sum() for logits in out.logits.values()).backward()
    assert saved
    square = [shape for shape in saved if sum(side >= tokens - 1 for side in shape) >= 2]
    assert not square, square


@pytest.mark.parametrize("ablation", ["sa_glca", "full"])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_checkpointing_changes_no_gradient(ablation, drop_path_rate):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(ablation, drop_path_rate=drop_path_rate, sharpness=3.0).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)
        out = model(random_images(4))
        sum(logits.square().sum() for logits in out.logits.values()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["checkpointing", "no_grad"])
def test_rollout_holds_queries_and_keys_of_sa_and_nothing_else(mode, monkeypatch):
    """A view of the fused projection would keep Q, K and V of both streams alive, in every layer."""
    kept = []

    def watch(queries, keys, **options):
        kept.extend([*queries, *keys])
        return attention_rollout(queries, keys, **options)

    monkeypatch.setattr("dual_cross_attention.models.glca.attention_rollout", watch)
    model = tiny_model("full").train()
    model.set_grad_checkpointing(mode == "checkpointing")
    with torch.set_grad_enabled(mode == "checkpointing"):
        model(random_images(4))
    assert len(kept) == 6
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * 4 for tensor in kept)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("ablation", ["sa_pwca", "full"])
def test_queries_and_keys_are_kept_for_rollout_only(ablation, checkpointing, monkeypatch):
    """Copied once a layer where a view would hold more, not again when a block is recomputed; without GLCA, never."""

    class Counted(torch.Tensor):
        """Counts the copies that are made of it."""

        clones = 0

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.clones += function is torch.Tensor.clone
            return super().__torch_function__(function, types, args, kwargs)

    def counted(run_block, place):
        """Query and key are outputs `place` and the one after it."""

        def run(*arguments):
            out = list(run_block(*arguments))
            out[place : place + 2] = [each.as_subclass(Counted) for each in out[place : place + 2]]
            return tuple(out)

        return run

    monkeypatch.setattr("dual_cross_attention.models.encoding.stacked_block", counted(stacked_block, 1))
    monkeypatch.setattr("dual_cross_attention.models.encoding.last_block", counted(last_block, 2))
    model = tiny_model(ablation).train()
    model.set_grad_checkpointing(checkpointing)
    sum(logits.sum() for logits in model(random_images(4)).logits.values()).backward()
    assert Counted.clones == (2 * 3 if ablation == "full" and checkpointing else 0)


def test_rollout_gives_no_gradient_to_the_backbone():
    """GLCA's loss reaches the backbone through its tokens only; the choice of the local ones is no path."""
    model = tiny_model("sa_glca", sharpness=6.0).train()
    out = model(random_images(3))
    assert not out.rollout.requires_grad and not out.local.requires_grad
    assert out.rollout.dtype == torch.float32
    out.logits["glca"].sum().backward()
    assert model.backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert model.backbone.norm.weight.grad is None  # SA's own norm is not GLCA's


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rollout_stays_float32_under_autocast(dtype):
    model = tiny_model("full", sharpness=6.0).train()
    with torch.autocast("cpu", dtype):
        out = model(random_images(3))
    assert out.rollout.dtype == torch.float32
    assert out.logits["sa"].dtype == dtype
    total = out.rollout.sum(-1)
    assert ((total > 0) & (total <= 1 + 1e-5)).all()  # what is missing to 1 is on the prefix
