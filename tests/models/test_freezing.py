"""A backbone that is frozen from below: no gradients, no dropout, no stochastic depth there; the rest as without."""

import copy

import pytest
import torch

from dual_cross_attention import InputError
from dual_cross_attention.tasks import FGVCTask
from tests.helpers import is_frozen, random_images, tiny_model

DEPTH = 3


def gradients(model) -> dict[str, torch.Tensor | None]:
    """Of the losses of all branches that the model has in training."""
    model.train()
    torch.manual_seed(3)
    out = model(random_images())
    sum(torch.nn.functional.cross_entropy(logits, torch.arange(4)) for logits in out.logits.values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("blocks", [1, 2, DEPTH])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_above_are_as_without(blocks, checkpointing):
    plain, frozen = tiny_model(), tiny_model()
    frozen.set_grad_checkpointing(checkpointing)
    frozen.freeze(blocks)
    expected, ours = gradients(plain), gradients(frozen)
    for name, gradient in ours.items():
        if is_frozen(name, blocks):
            assert gradient is None and expected[name] is not None, name
        else:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert sum(is_frozen(name, blocks) for name in ours) >= 4 + 12 * blocks


def test_nothing_below_is_differentiated():
    """The tokens that enter the first block that is trained need no gradient, those that leave it do."""
    model, seen = tiny_model(), []
    model.freeze(2)
    for block in model.backbone.blocks:
        block.norm1.register_forward_pre_hook(lambda _, given: seen.append(given[0].requires_grad))
        block.norm2.register_forward_pre_hook(lambda _, given: seen.append(given[0].requires_grad))
    model.train()
    model(random_images())
    assert seen[:5] == [False] * 5 and all(seen[5:]) and len(seen) > 6


def test_frozen_blocks_have_no_stochastic_depth_and_no_dropout():
    """In training, the frozen part computes what it computes in evaluation, however often it is called."""
    model = tiny_model("sa_only", drop_path_rate=0.9, attn_drop_rate=0.5, proj_drop_rate=0.5, pos_drop_rate=0.5)
    model.freeze(DEPTH)
    model.train()
    assert not any(block.training for block in model.backbone.blocks) and model.backbone.norm.training
    frozen = model(random_images()).features["sa"]
    torch.testing.assert_close(frozen, model.eval()(random_images()).features["sa"])
    model.freeze(0)
    model.train()
    assert model.backbone.blocks[0].training
    assert not torch.equal(frozen, model(random_images()).features["sa"])


def test_all_leaves_heads_and_glca():
    model = tiny_model()
    model.freeze("all")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != is_frozen(name, "all"), name
    assert {name.split(".")[0] for name, each in model.named_parameters() if each.requires_grad} == {
        "backbone",
        "glca_block",
        "glca_norm",
        "glca_head",
    }


@pytest.mark.parametrize("blocks", [-1, DEPTH + 1])
def test_more_blocks_than_there_are(blocks):
    with pytest.raises(InputError, match=f"freeze.*from 0 to {DEPTH}.*{blocks}"):
        tiny_model().freeze(blocks)


@pytest.mark.parametrize(
    "options",
    [
        {"ablation": "sa_only"},
        {"ablation": "full"},
        {"ablation": "sa_glca", "glca_blocks": 2},
        {"ablation": "sa_glca", "local_queries": "cross"},
        {"ablation": "sa_glca", "local_queries": "random", "glca_blocks": 2},
        {"ablation": "sa_glca", "local_queries": "penultimate", "glca_blocks": 2},
        {"ablation": "sa_glca", "task": "reid"},
    ],
)
def test_features_that_were_computed_once_give_the_same(options):
    """Logits, features and the choice of local tokens of a pass over the images; the tokens have no gradient."""
    model = tiny_model(sharpness=4.0, **options).eval()
    encoded = model.encode(random_images())
    assert not encoded.tokens.requires_grad
    ours, expected = model.forward_encoded(encoded), model(random_images())
    assert ours.logits.keys() == expected.logits.keys() == ours.features.keys()
    for branch in expected.logits:
        torch.testing.assert_close(ours.logits[branch], expected.logits[branch])
        torch.testing.assert_close(ours.features[branch], expected.features[branch])
    if expected.local is not None:
        assert torch.equal(ours.local, expected.local)


def test_a_step_on_features_has_the_gradients_of_a_step_on_images():
    """Of heads and GLCA, through the task; PWCA is no part of either."""
    model = tiny_model("sa_glca")
    model.freeze("all")
    tasks = [FGVCTask(copy.deepcopy(model)) for _ in range(2)]
    labels = {"labels": torch.arange(4)}
    encoded = model.eval().encode(random_images())
    for task, batch in zip(tasks, ({"images": random_images()}, encoded._asdict()), strict=True):
        task.train()
        task.training_step(batch | labels)["loss"].backward()
    ours, expected = (dict(task.named_parameters()) for task in tasks)
    assert sum(parameter.grad is not None for parameter in ours.values()) > 15
    for name, parameter in expected.items():
        if parameter.grad is None:
            assert ours[name].grad is None
        else:
            torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)
