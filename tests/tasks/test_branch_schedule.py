"""Schedules of the branches against their definition, and what a task makes of them."""

import math
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from dual_cross_attention import InputError, create_model
from dual_cross_attention.configs import FGVCConfig
from dual_cross_attention.inference.evaluation_loop import run_eval_steps
from dual_cross_attention.tasks import BranchSchedule, FGVCTask, ReIDTask, RetrievalSplit
from tests.helpers import TINY

ALL = ("sa", "glca", "pwca")


def make_task(task="fgvc", ablation="full", **schedule):
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", 4, task, 32, ablation, **TINY)
    options = {"schedule": BranchSchedule(**schedule)}
    split = RetrievalSplit(torch.arange(8) % 4, torch.arange(8) // 4, 4)
    return FGVCTask(model, **options) if task == "fgvc" else ReIDTask(model, split, **options)


def evaluate(task, batches):
    run_eval_steps(task, batches)
    return task.compute_metrics()


def features_of(task, batches):
    run_eval_steps(task, batches)
    return task.gather_features()


def make_batch(first_label=0):
    labels = torch.arange(4).repeat_interleave(2) + first_label
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"images": images, "labels": labels, "indices": torch.arange(8), "valid": torch.ones(8, dtype=torch.bool)}


@pytest.mark.parametrize("steps", [1, 7, 30, 210])
@pytest.mark.parametrize("start", ["0", "0.1", "0.25", "0.3", "0.7", "1"])
@pytest.mark.parametrize("warmup", ["0", "0.1", "0.3"])
def test_scales_are_a_line_from_0_at_the_start_to_1_after_the_warmup(steps, start, warmup):
    schedule = BranchSchedule(float(start), float(warmup), float(start))
    began, grows = steps * Fraction(start), steps * Fraction(warmup)
    for step in range(1, steps + 1):
        scales = schedule.scales(ALL, step, steps)
        assert ("glca" in scales) == ("pwca" in scales) == (step > began)
        assert scales["sa"] == scales.get("glca", 1) == 1
        if step > began:
            expected = min(1, (step - began) / grows) if grows else 1
            assert scales["pwca"] == pytest.approx(float(expected), abs=1e-12)


def test_shares_are_exact_decimals():
    """0.1 * 30 steps and 0.7 * 10 are no floats of 3 and 7: the branch starts with the step after them."""
    for start, steps, first in ((0.1, 30, 4), (0.7, 10, 8), (0.29, 100, 30), (0.57, 100, 58)):
        schedule = BranchSchedule(glca_start=start)
        assert [schedule.glca_is_on(step, steps) for step in (first - 1, first)] == [False, True]


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 7])
@pytest.mark.parametrize("start", [0.0, 0.1, 0.25, 0.5, 0.99, 1.0])
def test_whole_epochs_tell_whether_a_model_has_a_trained_glca(start, steps_per_epoch):
    schedule, epochs = BranchSchedule(glca_start=start), 10
    steps = steps_per_epoch * epochs
    for epoch in range(1, epochs + 1):
        trained = any(schedule.glca_is_on(step, steps) for step in range(1, epoch * steps_per_epoch + 1))
        assert schedule.glca_is_on(epoch, epochs) == trained


@pytest.mark.parametrize("task", ["fgvc", "reid"])
@pytest.mark.parametrize(("step", "on"), [(1, {"sa"}), (3, {"sa", "glca"}), (5, {"sa", "glca", "pwca"})])
def test_a_branch_that_is_off_is_not_computed_and_has_no_loss(task, step, on):
    made = make_task(task, glca_start=0.2, pwca_start=0.4, pwca_warmup=0.4).train()
    with torch.no_grad():
        made.weighting.w.copy_(torch.tensor([0.5, -0.25, 1.0]))
    rows, calls = [], []
    made.model.backbone.norm.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    made.model.glca_block.register_forward_hook(lambda *_: calls.append(1))
    made.begin_step(step, 10)
    out = made(make_batch())
    assert {name.removeprefix("loss_") for name in out if name.startswith("loss_")} == on
    assert (rows, len(calls)) == ([16 if "pwca" in on else 8], int("glca" in on))
    expected = 0
    for w, branch in zip([0.5, -0.25, 1.0], ALL, strict=True):
        if branch in on:
            scale = 0.25 if branch == "pwca" else 1  # the first of the four steps of its warm-up
            expected += 0.5 * scale * (math.exp(-w) * out[f"loss_{branch}"].item() + w)
        assert out[f"w_{branch}"].item() == w  # reported for all
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    out["loss"].backward()
    for branch, gradient in zip(ALL, made.weighting.w.grad, strict=True):
        assert (gradient != 0) == (branch in on)
    assert all((parameter.grad is not None) == ("glca" in on) for parameter in made.model.glca_block.parameters())


def test_inactive_branches_do_not_change_sa():
    """The same step as of the model without them, up to the ½ e^-w of SA."""
    plain, late = make_task(ablation="sa_only").train(), make_task(glca_start=0.5, pwca_start=0.5).train()
    late.begin_step(1, 10)
    late.model.backbone.load_state_dict(plain.model.backbone.state_dict())
    plain(make_batch())["loss"].backward()
    late(make_batch())["loss"].backward()
    for ours, theirs in zip(late.model.backbone.parameters(), plain.model.backbone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, 0.5 * theirs.grad, atol=1e-7, rtol=1e-4)


def test_with_everything_on_the_step_is_todays_to_the_bit():
    today, scheduled = make_task().train(), make_task(pwca_start=0.25, glca_start=0.5, pwca_warmup=0.25).train()
    scheduled.begin_step(6, 10)
    for made in (today, scheduled):
        torch.manual_seed(3)
        made(make_batch())["loss"].backward()
    for ours, theirs in zip(scheduled.parameters(), today.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_before_its_start_glca_has_no_say_in_fgvc():
    made = make_task(glca_start=0.5)
    for head in (made.model.backbone.head, made.model.glca_head):
        torch.nn.init.normal_(head.weight)
    batch = make_batch()
    metrics = {}
    for step in (5, 6):
        made.begin_step(step, 10)
        metrics[step] = evaluate(made, [batch])
    assert metrics[5].keys() == metrics[6].keys()
    assert metrics[5]["top1"] == metrics[5]["top1_sa"]
    with torch.no_grad():
        logits = made.model(batch["images"]).logits
    for step, scores in ((5, logits["sa"].softmax(-1)), (6, logits["sa"].softmax(-1) + logits["glca"].softmax(-1))):
        assert metrics[step]["top1"] == 12.5 * (scores.argmax(-1) == batch["labels"]).sum().item()
        made.begin_step(step, 10)
        torch.testing.assert_close(made.model.predict(batch["images"]), scores / scores.sum(-1, keepdim=True))
    assert metrics[5]["top1_glca"] == metrics[6]["top1_glca"]  # of itself it is still told


def test_before_its_start_glca_has_no_say_in_reid():
    made = make_task("reid", glca_start=0.5)
    batch = make_batch()
    made.begin_step(5, 10)
    features = features_of(made, [batch]).features
    assert torch.equal(features[""], features["sa"]) and features["glca"].shape == (8, 48)
    assert made.model.embed(batch["images"]).shape == (8, 48)
    assert evaluate(made, [batch])["mAP"] == evaluate(made, [batch])["mAP_sa"]
    made.begin_step(6, 10)
    assert features_of(made, [batch]).features[""].shape == (8, 96)
    assert made.model.embed(batch["images"]).shape == (8, 96)


def test_branches_of_a_forward_pass():
    model = make_task().model.train()
    images = make_batch()["images"]
    assert set(model(images, None, ["sa"]).logits) == {"sa"}
    with pytest.raises(InputError, match="expected 'sa'"):
        model(images, None, ["glca"])
    with pytest.raises(InputError, match="pwca"):
        make_task(ablation="sa_glca").model(images, None, ["sa", "pwca"])


def test_the_first_step_of_other_branches_is_reported():
    made = make_task(glca_start=0.5)
    assert [made.begin_step(step, 10) for step in (1, 2, 5, 6, 7)] == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pwca_start": 1.5}, "pwca_start: expected a number from 0 to 1"),
        ({"glca_start": -0.1}, "glca_start"),
        ({"pwca_start": 0.75, "pwca_warmup": 0.5}, "pwca_warmup: expected at most what is left"),
    ],
)
def test_shares_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        FGVCConfig(**settings)
    assert FGVCConfig(pwca_start=0.7, pwca_warmup=0.3).pwca_warmup == 0.3


@pytest.mark.parametrize("momentum", ["adamw", "sgd"])
def test_w_of_a_branch_that_is_off_stays(momentum):
    """Also after it was on, when the optimizer remembers its gradients."""
    from dual_cross_attention.training.held_weights import hold_absent_weights
    from dual_cross_attention.training.optimizers import build_optimizer

    made = make_task().train()
    optimizer = build_optimizer(made, 1e-2, 0.05, momentum)
    hold_absent_weights(optimizer, made.weighting)

    def step(*on):
        made.scales = dict.fromkeys(on, 1.0)
        before = made.weighting.w.detach().clone()
        made(make_batch())["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        return (made.weighting.w.detach() != before).tolist()

    assert step(*ALL) == [True, True, True]
    assert step("sa", "glca") == [True, True, False]
    assert step("sa") == [True, False, False]
    assert step(*ALL) == [True, True, True]


def test_cross_entropy_is_of_the_branches_that_are_on():
    made = make_task(glca_start=0.5).train()
    made.begin_step(1, 10)
    torch.manual_seed(5)
    out = made(make_batch())
    torch.manual_seed(5)
    logits = made.model(make_batch()["images"], None, ["sa", "pwca"]).logits
    for branch in ("sa", "pwca"):
        assert out[f"loss_{branch}"].item() == pytest.approx(
            F.cross_entropy(logits[branch], make_batch()["labels"]).item()
        )
    correct = (logits["sa"].argmax(-1) == make_batch()["labels"]).float().mean().item()
    assert out["accuracy"].item() == pytest.approx(100 * correct)
