"""One or several ranks behind one interface: DDP or FSDP, collectives, a state dict for any number of ranks."""

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from dual_cross_attention.errors import InputError, InterruptedRun
from dual_cross_attention.losses import UncertaintyWeighting
from dual_cross_attention.tasks.task import Task
from dual_cross_attention.training.distributed.fsdp import is_sharded
from dual_cross_attention.training.held_weights import hold_absent_weights
from dual_cross_attention.training.optimizers import complete_state
from dual_cross_attention.training.weight_average import WeightAverage


def ddp_options(has_unused_parameters: bool) -> DistributedDataParallelKwargs:
    """How Accelerate configures DDP.

    Args:
        has_unused_parameters: some steps have no gradient for some parameters, for which DDP would wait. In a step that
            has all of them, DDP would warn that it searched for nothing; the warning is silenced.
    """
    if has_unused_parameters:
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified", UserWarning)
    # gradient_as_bucket_view: otherwise gradients take their memory twice
    return DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=has_unused_parameters)


class DistributedStrategy:
    """A task and its optimizer on the device, with gradients averaged over ranks: by DDP, or FSDP if it is sharded.

    Args:
        accelerator: device, precision and ranks; created with `ddp_options`.
        task: is moved to the device, unless `shard` has.
        optimizer: of the task's parameters.
        ema: decay of an average of the weights; None: there is none.

    Attributes:
        wrapped: call this in place of the task in a training step.
        optimizer: step this in place of `plain_optimizer`; with fp16 it unscales gradients.
        plain_optimizer: the given optimizer.
        sharded: whether parameters are sharded (FSDP).
        average: of the weights; alike on all ranks, as they are.
    """

    def __init__(self, accelerator: Accelerator, task: Task, optimizer: Optimizer, ema: float | None = None):
        self.accelerator, self.task, self.plain_optimizer = accelerator, task, optimizer
        self.sharded = is_sharded(task)
        self.wrapped: nn.Module
        if self.sharded:
            self.wrapped, self.optimizer = task, accelerator.prepare(optimizer)
            # A forward pass projects w after it is gathered, which changes a copy only.
            if isinstance(task.weighting, UncertaintyWeighting):
                optimizer.register_step_post_hook(lambda *_: task.weighting.project())
        else:
            self.wrapped, self.optimizer = accelerator.prepare(task, optimizer)
            # DDP would broadcast buffers before forward passes; `BatchNormStatistics` keeps them alike.
            self.wrapped.broadcast_buffers = False
        if isinstance(task.weighting, UncertaintyWeighting):
            hold_absent_weights(optimizer, task.weighting)
        self.average = None if ema is None else WeightAverage(task, ema)

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        return self.accelerator.num_processes

    def no_sync(self) -> AbstractContextManager:
        """Within this context, DDP does not reduce gradients: more passes of the same step follow."""
        return nullcontext() if self.sharded else self.accelerator.no_sync(self.wrapped)

    def all_reduce_gradients(self) -> None:
        """Averages gradients over ranks, as DDP does in the backward pass, after passes within `no_sync`."""
        for parameter in self.task.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.world_size

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Scales gradients down to a total norm of `max_norm`; returns the norm before, alike on all ranks."""
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all ranks."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
            tensor = tensor / self.world_size
        return tensor

    def all_reduce_max(self, number: int) -> int:
        """The largest of all ranks' numbers; with several ranks, this waits for the device."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number, device=self.accelerator.device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return int(shared)

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value (any object that can be pickled), by rank."""
        return gather_object([value]) if self.world_size > 1 else [value]

    def barrier(self) -> None:
        """Waits for all ranks: a launcher terminates the others soon after the first has exited."""
        self.all_reduce_max(0)

    def state_dict(self) -> dict[str, Any]:
        """Weights, their average, optimizer state and loss scale, by parameter name, for any number of ranks.

        A collective, to be called after at least one step; the result is complete on rank 0.
        """
        complete_state(self.plain_optimizer)
        options = StateDictOptions(full_state_dict=True, cpu_offload=self.world_size > 1)
        task, optimizer = get_state_dict(self.task, self.plain_optimizer, options=options)
        scaler = self.accelerator.scaler
        state = {"task": task, "optimizer": optimizer, "scaler": scaler.state_dict() if scaler else None}
        return state | ({"ema": self.average.state_dict()} if self.average else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads what `state_dict` returns; a collective.

        Raises:
            RuntimeError, KeyError, ValueError: it does not fit this task and optimizer.
        """
        set_state_dict(
            self.task,
            self.plain_optimizer,
            model_state_dict=state["task"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(full_state_dict=True),
        )
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state.get("ema"))


def refuse_accelerate_plugins() -> None:
    """Raises InputError if `accelerate launch` is configured to shard the model itself; `--parallel` chooses that."""
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() == "true":
            raise InputError(
                f"accelerate is configured to use {name}: take `accelerate launch --multi_gpu` (or torchrun), and "
                "--parallel fsdp where the model does not fit one card"
            )


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether an error says that another rank no longer responds; gloo's is recognized by its message."""
    message = str(error)
    has_message = any(words in message for words in ("Connection closed by peer", "Connection reset by peer"))
    return has_message or (distributed.is_available() and isinstance(error, distributed.DistError))


def on_rank_zero(function: Callable[[], Any]) -> Any:
    """Calls a function on rank 0; all ranks return what it returns, or raise what it raises.

    For decisions that depend on a folder that rank 0 then writes to.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return function()
    outcome: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            outcome[0] = function()
        except (Exception, InterruptedRun) as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
