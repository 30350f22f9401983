"""What decays, and how the learning rate runs."""

import math

import pytest
import torch

from dual_cross_attention import create_model
from dual_cross_attention.tasks import FGVCTask, ReIDTask, RetrievalSplit
from dual_cross_attention.training.optimizers import build_optimizer, build_schedule, peak_learning_rate

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize(
    "backbone", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2"]
)
def test_only_matrices_decay(backbone):
    size = 28 if "14" in backbone else 32
    task = FGVCTask(create_model(backbone, 5, img_size=size, **TINY))
    optimizer = build_optimizer(task, lr=0.5, weight_decay=0.05)
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    lr = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    names = dict(task.named_parameters())
    assert len(decay) == len(names) == sum(len(group["params"]) for group in optimizer.param_groups)

    # Listed by what they are: linear maps and the patch embedding. No norm, bias, embedding, layer scale, and no w.
    matrices = (".qkv.weight", ".proj.weight", ".fc1.weight", ".fc2.weight", "head.weight", "head_dist.weight")
    for name, parameter in names.items():
        assert lr[id(parameter)] == 0.5
        assert decay[id(parameter)] == (0.05 if name.endswith(matrices) else 0.0), name
    assert decay[id(task.weighting.w)] == 0
    exempt = {name.rpartition(".")[2] for name, parameter in names.items() if decay[id(parameter)] == 0}
    assert {"w", "bias", "weight", "cls_token", "pos_embed"} <= exempt


def test_weight_decay_is_decoupled():
    """A parameter without a gradient shrinks by lr x decay, whatever Adam makes of gradients."""
    task = FGVCTask(create_model("vit_tiny_patch16_224", 5, img_size=32, **TINY))
    optimizer = build_optimizer(task, lr=0.1, weight_decay=0.05)
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in task.named_parameters():
        shrunk = 1 - 0.1 * 0.05 if parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token")) else 1
        torch.testing.assert_close(parameter.detach(), before[name] * shrunk)


def reid_task():
    split = RetrievalSplit(torch.zeros(2), torch.zeros(2), 1)
    return ReIDTask(create_model("vit_tiny_patch16_224", 5, task="reid", img_size=32, **TINY), split)


def test_sgd_is_that_of_transreid():
    """Momentum 0.9, decay of everything but w, biases at their own rate; what does not learn is not there."""
    task = reid_task()
    optimizer = build_optimizer(task, lr=0.5, weight_decay=1e-4, kind="sgd", bias_lr_factor=2.0, w_lr_factor=0.1)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            assert name.endswith("neck.bias") and id(parameter) not in found
            continue
        group = found[id(parameter)]
        assert group["momentum"] == 0.9
        assert group["weight_decay"] == (0.0 if name == "weighting.w" else 1e-4), name
        factor = 0.1 if name == "weighting.w" else 2.0 if name.endswith("bias") else 1.0
        assert group["lr"] * group["lr_scale"] == 0.5 * factor, name
    assert optimizer.param_groups[0]["lr"] == 0.5  # what a run reports as its learning rate


@pytest.mark.parametrize("warmup", [0, 1])
def test_every_group_keeps_its_share_of_the_schedule(warmup):
    """From the first update on, in warm-up, cosine and floor."""
    optimizer = build_optimizer(
        reid_task(), lr=0.1, weight_decay=1e-4, kind="sgd", bias_lr_factor=2.0, w_lr_factor=0.01
    )
    schedule = build_schedule(optimizer, 10, 4, warmup, 0.001)
    start = optimizer.param_groups[0]["lr"]
    assert start == pytest.approx(0.001 if warmup else 0.1)
    for update in range(41):
        rates = {group["lr_scale"]: group["lr"] for group in optimizer.param_groups}
        assert set(rates) == {1.0, 2.0, 0.01}
        for scale, rate in rates.items():
            assert rate == pytest.approx(scale * rates[1.0])
        schedule.step_update(update + 1)


def test_the_papers_learning_rate():
    assert peak_learning_rate(None, 5e-4, 16) == pytest.approx(5e-4 / 512 * 16)
    assert peak_learning_rate(None, 5e-4, 2 * 8) == peak_learning_rate(
        None, 5e-4, 16
    )  # accumulation does not change it
    assert peak_learning_rate(0.01, 5e-4, 16) == 0.01
    assert peak_learning_rate(0.0, 5e-4, 16) == 0.0  # set is set


def rates(updates_per_epoch, epochs, warmup_epochs, min_lr, peak=0.1):
    """The learning rate that each update is made with, and the one after the last."""
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)]}], lr=peak)
    schedule = build_schedule(optimizer, updates_per_epoch, epochs, warmup_epochs, min_lr)
    values = []
    for update in range(updates_per_epoch * epochs + 1):
        assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[1]["lr"]
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step_update(update + 1)
    return values


@pytest.mark.parametrize("min_lr", [0.0, 0.01])
@pytest.mark.parametrize("warmup_epochs", [0, 1, 2.5])
def test_schedule(warmup_epochs, min_lr):
    values = rates(10, 5, warmup_epochs, min_lr)
    warmup, total, peak = round(10 * warmup_epochs), 50, 0.1
    for update, value in enumerate(values):
        if update < warmup:
            expected = 0.01 * peak + (peak - 0.01 * peak) * update / warmup
        else:
            expected = min_lr + (peak - min_lr) * (1 + math.cos(math.pi * (update - warmup) / (total - warmup))) / 2
        assert value == pytest.approx(expected, abs=1e-12), update
    assert values[0] == pytest.approx(0.001 if warmup else 0.1)
    assert max(values) == values[warmup] == pytest.approx(0.1)
    assert values[-1] == pytest.approx(min_lr)


def test_a_training_that_is_all_warm_up(caplog):
    """As one epoch of the toy task: up to the peak, without timm's warning that there is no cosine."""
    values = rates(10, 1, 1.0, 0.0)
    assert values[0] == pytest.approx(0.001) and values[-1] == pytest.approx(0.1)
    rates(1, 1, 0, 0.0)
    assert not caplog.records


def test_a_state_from_before_the_optimizer_was_fused_is_gone_on_with():
    """Restored half, AdamW would run unfused, and fp16's scaler would give it what only the fused one takes."""
    task = FGVCTask(create_model("deit_tiny_patch16_224", 5, img_size=32, **TINY))
    fused = build_optimizer(task, 1e-2, 0.05)
    weights = [group["params"] for group in fused.param_groups]
    plain = torch.optim.AdamW([dict(group) for group in fused.param_groups], fused=False)
    for group in plain.param_groups:
        group["fused"] = None
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    plain.step()
    fused.load_state_dict(plain.state_dict())
    assert all(group["fused"] for group in fused.param_groups)

    expected = [[parameter.detach().clone() for parameter in group] for group in weights]
    copies = [[value.clone().requires_grad_() for value in group] for group in expected]
    again = torch.optim.AdamW(
        [{**group, "params": own} for group, own in zip(plain.param_groups, copies, strict=True)], fused=False
    )
    again.load_state_dict(plain.state_dict())
    for parameter in [value for group in copies for value in group]:
        parameter.grad = torch.ones_like(parameter)
    again.step()
    fused.step()
    for ours, theirs in zip(weights, copies, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_overflow_in_the_first_step_leaves_no_momentum():
    """fp16's scaler skips that step; momentum must not start from uninitialized memory."""
    task = FGVCTask(create_model("deit_tiny_patch16_224", 5, img_size=32, **TINY))
    optimizer = build_optimizer(task, 0.1, 0.0, "sgd")
    scaler = torch.amp.GradScaler("cpu")
    before = [parameter.detach().clone() for parameter in task.parameters()]
    for value in (float("inf"), 1.0):
        for parameter in task.parameters():
            parameter.grad = torch.full_like(parameter, value) * scaler.get_scale()
        scaler.scale(torch.ones(()))  # a loss: it starts the scaler
        scaler.step(optimizer)
        scaler.update()
    for parameter, old in zip(task.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old - 0.1)
