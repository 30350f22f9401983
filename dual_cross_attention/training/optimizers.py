"""Optimizer, its parameter groups, and the cosine schedule."""

from typing import Literal

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from dual_cross_attention.tasks.task import Task
from dual_cross_attention.training.distributed.fsdp import is_sharded
from dual_cross_attention.training.layer_decay import layer_scales

MOMENTUM = 0.9


def peak_learning_rate(lr: float | None, lr_per_512: float, effective_batch: int) -> float:
    """`lr` if it is set, else the paper's rule: lr_per_512 · effective batch / 512."""
    return lr if lr is not None else lr_per_512 * effective_batch / 512


def build_optimizer(
    task: Task,
    lr: float,
    weight_decay: float,
    kind: Literal["adamw", "sgd"] = "adamw",
    bias_lr_factor: float = 1.0,
    w_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> Optimizer:
    """Builds AdamW as in DeiT (no weight decay of vectors and embeddings) or SGD as in TransReID (decays everything).

    The loss weights w never decay: that would pull all branches to equal weights. The first group has the learning rate
    `lr` itself; the schedule sets that of the others.

    Args:
        bias_lr_factor, w_lr_factor: the learning rate of biases and of the loss weights, in units of `lr`.
        layer_decay: factor on the learning rate from each block of the backbone to the one below, see `layer_scales`;
            it multiplies with `bias_lr_factor`.
    """
    exempt = {f"model.{name}" for name in task.model.no_weight_decay()}
    layers = layer_scales(task.model, layer_decay) if layer_decay != 1.0 else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}  # by lr_scale and weight decay
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            is_w, is_bias = name == "weighting.w", name.endswith("bias")
            decays = not is_w and (kind == "sgd" or (parameter.ndim > 1 and name not in exempt))
            scale = w_lr_factor if is_w else bias_lr_factor if is_bias else 1.0
            scale *= layers.get(name.removeprefix("model."), 1.0)
            groups.setdefault((scale, weight_decay if decays else 0.0), []).append(parameter)
    given = [
        {"params": own, "lr": lr, "lr_scale": scale, "weight_decay": decay} for (scale, decay), own in groups.items()
    ]
    given.insert(0, given.pop(next((place for place, group in enumerate(given) if group["lr_scale"] == 1.0), 0)))
    # Fused: one kernel for all parameters, and a step can be skipped without a host sync, see `NonFiniteGuard` and the
    # loss scaling of fp16.
    if kind == "adamw":
        optimizer: Optimizer = AdamW(given, fused=True)
    else:
        fused = not is_sharded(task)  # PyTorch has no fused SGD for DTensor
        optimizer = SGD(given, momentum=MOMENTUM, fused=fused)
        # Otherwise a first step that is skipped would leave the momentum in uninitialized memory.
        for parameter in (parameter for own in groups.values() for parameter in own):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    optimizer.register_load_state_dict_pre_hook(_stay_as_built)
    return optimizer


def complete_state(optimizer: Optimizer) -> None:
    """Initializes AdamW's state of parameters without a gradient so far, so that a state dict has all of them."""
    if not isinstance(optimizer, AdamW):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in optimizer.state:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def _stay_as_built(optimizer: Optimizer, state: dict) -> dict:
    """Keeps `fused` as built: loading a state dict would switch it in the groups, but not in the optimizer."""
    fused = optimizer.defaults["fused"]
    return state | {"param_groups": [group | {"fused": fused} for group in state["param_groups"]]}


def build_schedule(
    optimizer: Optimizer, updates_per_epoch: int, epochs: int, warmup_epochs: float, min_lr: float
) -> CosineLRScheduler:
    """Builds a linear warmup from 1 % of the peak, then cosine to `min_lr`; `step_update(n)` follows the n-th update.

    Groups with an "lr_scale" get that multiple. A warmup longer than the training is shortened here, not in the
    settings, so that a longer training that resumes from this one, or uses its config.yaml, has the configured warmup.
    """
    peak = optimizer.param_groups[0]["lr"]
    warmup = round(min(warmup_epochs, epochs) * updates_per_epoch)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=max(2, epochs * updates_per_epoch - warmup),  # at 1 or less, timm warns that there is no cosine
        lr_min=min_lr,
        warmup_t=warmup,
        warmup_lr_init=0.01 * peak,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    schedule.step_update(0)  # timm applies lr_scale at the first update only
    return schedule
