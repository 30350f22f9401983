"""A training step never waits for the GPU: nothing in it needs to know a value on the host."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dual_cross_attention import create_model
from dual_cross_attention.tasks import BranchSchedule, FGVCTask, ReIDTask, RetrievalSplit
from dual_cross_attention.training.held_weights import hold_absent_weights
from dual_cross_attention.training.optimizers import build_optimizer

# Those whose result, or its shape, the host has to read.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::unique_dim",
}


class Watch(TorchDispatchMode):
    """Keeps the names of operations that would wait."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        by_mask = (
            name.startswith("aten::index")
            and any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1] or ())
            if name in ("aten::index", "aten::index_put", "aten::index_put_")
            else False
        )
        if name in WAITING or by_mask:
            self.waited.append(name)
        return function(*args, **(kwargs or {}))


# Of the model, and of the task's schedule.
METHODS = {
    "defaults": ({}, {}),
    "cheaper PWCA": ({"pwca_blocks": 2, "distractor_tokens": 0.5}, {"pwca_warmup": 1.0}),
    "branches off": ({}, {"glca_start": 0.5, "pwca_every": 2}),
    "random queries": ({"local_queries": "random", "glca_blocks": 2}, {}),
    "penultimate queries": ({"local_queries": "penultimate", "glca_blocks": 2}, {}),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("task", ["fgvc", "reid"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_never_waits(task, checkpointing, method):
    of_model, of_schedule = METHODS[method]
    tiny = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "drop_path_rate": 0.3, **of_model}
    schedule = BranchSchedule(**of_schedule)
    model = create_model("vit_tiny_patch16_224", 4, img_size=32, task=task, **tiny)
    model.set_grad_checkpointing(checkpointing)
    split = RetrievalSplit(torch.arange(2), torch.arange(2), 1)
    made = FGVCTask(model, schedule=schedule) if task == "fgvc" else ReIDTask(model, split, schedule=schedule)
    optimizer = build_optimizer(made.train(), 1e-3, 0.05, "adamw" if task == "fgvc" else "sgd")
    hold_absent_weights(optimizer, made.weighting)
    batch = {"images": torch.randn(8, 3, 32, 32), "labels": torch.arange(4).repeat_interleave(2)}
    for step in (1, 2, 8):
        with Watch() as watch:
            made.begin_step(step, 10)
            made(batch)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        assert not watch.waited
    with Watch() as watch:
        batch["labels"][batch["labels"] > 1].sum().item()
    assert len(watch.waited) == 2  # it does see them
