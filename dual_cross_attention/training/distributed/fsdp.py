"""FSDP: parameters, gradients and the optimizer's state split over processes, for backbones that do not fit one card.

Notable:
- the unit is a block, whose parameters are gathered while it runs. Blocks are opened, not called, so each gets a method
  through which they are run, and FSDP is told of it;
- nothing is cast: autocast does that, as without FSDP, so a step computes what it would compute on one process;
- gradients are split after every micro-batch. To accumulate them whole would take the memory that this is to save.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from dual_cross_attention.tasks.task import Task


def shard(task: Task, device: torch.device, processes: int) -> None:
    """Split a task's parameters over the processes, in place; before its optimizer is built. Names stay.

    Args:
        task: with the same weights in every process.
        device: where they go.
        processes: how many there are.
    """
    mesh, model = init_device_mesh(device.type, (processes,)), task.model
    for block in model.backbone.blocks:
        fully_shard(block, mesh=mesh)
        block.run_opened = MethodType(_run_opened, block)
        register_fsdp_forward_method(block, "run_opened")
    model.wrap_block_functions(_gathered)
    for block in model.glca_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)  # the rest: stem, norms, heads, loss weights
    task.to(device)  # what is split is there already; buffers may not be
    register_fsdp_forward_method(task, "evaluate")


def is_sharded(task: nn.Module) -> bool:
    """Whether `shard` has split its parameters."""
    return isinstance(task, FSDPModule)


def _run_opened(block: nn.Module, run_block: Callable, *given: Any) -> Any:
    return run_block(block, *given)


def _gathered(run_block: Callable) -> Callable:
    """The same function of a block, with the block's parameters gathered around it."""

    def run(block: nn.Module, *given: Any) -> Any:
        return block.run_opened(run_block, *given)

    return run
