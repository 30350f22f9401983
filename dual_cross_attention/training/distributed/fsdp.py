"""FSDP: parameters, gradients and optimizer state are sharded over ranks, for models that do not fit one GPU.

Notable:
- the unit is a transformer block, whose parameters are gathered while it runs. The model calls the parts of a block,
  not the block itself, so each block gets a method that runs them, and FSDP registers that method;
- FSDP casts nothing: autocast does, as without FSDP, so a step computes what it would compute on one rank;
- gradients are reduce-scattered after every micro-batch: accumulating full gradients would take the memory that FSDP is
  to save.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from dual_cross_attention.tasks.task import Task


def shard(task: Task, device: torch.device, world_size: int) -> None:
    """Shards a task's parameters over the ranks, in place; call before its optimizer is built. Names stay.

    Args:
        task: with the same weights on every rank.
        device: where the shards go.
        world_size: number of ranks.
    """
    mesh, model = init_device_mesh(device.type, (world_size,)), task.model
    for block in model.family.blocks(model.backbone):
        fully_shard(block, mesh=mesh)
        block.run_opened = MethodType(_run_opened, block)
        register_fsdp_forward_method(block, "run_opened")
    model.wrap_block_functions(_gathered)
    for block in model.glca_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)  # the rest: stem, norms, heads, loss weights
    task.to(device)  # shards are on it already; buffers may not be
    register_fsdp_forward_method(task, "eval_step")
    register_fsdp_forward_method(task, "compute_metrics")  # which may run the necks


def is_sharded(task: nn.Module) -> bool:
    """Whether `shard` was applied to a task."""
    return isinstance(task, FSDPModule)


def _run_opened(block: nn.Module, run_block: Callable, *given: Any) -> Any:
    return run_block(block, *given)


def _gathered(run_block: Callable) -> Callable:
    """Wraps a function of a block so that the block's parameters are gathered while it runs."""

    def run(block: nn.Module, *given: Any) -> Any:
        return block.run_opened(run_block, *given)

    return run
