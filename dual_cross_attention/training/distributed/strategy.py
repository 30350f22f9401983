"""One process, or several that train together: gradients averaged, a state that does not tell how many there were."""

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


def ddp_options(leaves_out_parameters: bool) -> DistributedDataParallelKwargs:
    """How DDP is to wrap a task.

    Args:
        leaves_out_parameters: some steps have no gradient for some parameters, for which DDP would wait. In a step that
            has them all, it then warns that it looked in vain.
    """
    if leaves_out_parameters:
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified", UserWarning)
    # gradient_as_bucket_view: else gradients take their memory twice
    return DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=leaves_out_parameters)


class Parallel:
    """A task and its optimizer, on the device, with gradients averaged over all processes: DDP, or FSDP if the task is
    sharded.

    Args:
        accelerator: knows device, precision and processes; made with `ddp_options`.
        task: is moved to the device, unless it was sharded, and is there.
        optimizer: of its parameters.

    Attributes:
        wrapped: to be called in place of the task, for a training step.
        optimizer: to be stepped in place of the one given; with fp16, it scales back.
        plain_optimizer: the one given.
    """

    def __init__(self, accelerator: Accelerator, task: Task, optimizer: Optimizer):
        self.accelerator, self.task, self.plain_optimizer = accelerator, task, optimizer
        self.sharded = is_sharded(task)
        self.wrapped: nn.Module
        if self.sharded:
            self.wrapped, self.optimizer = task, accelerator.prepare(optimizer)
            # A forward pass projects w where it was gathered, which is a copy.
            if isinstance(task.weighting, UncertaintyWeighting):
                optimizer.register_step_post_hook(lambda *_: task.weighting.project())
        else:
            self.wrapped, self.optimizer = accelerator.prepare(task, optimizer)
            # Of DDP, before forward passes; `RunningStatistics` keeps buffers alike.
            self.wrapped.broadcast_buffers = False
        if isinstance(task.weighting, UncertaintyWeighting):
            hold_absent_weights(optimizer, task.weighting)

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    def accumulating(self) -> AbstractContextManager:
        """Within this, gradients stay with their process: more of the same step are to come."""
        return nullcontext() if self.sharded else self.accelerator.no_sync(self.wrapped)

    def average_gradients(self) -> None:
        """What DDP does in the backward pass, for passes that were `accumulating`."""
        for parameter in self.task.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.processes

    def clip(self, limit: float) -> Tensor:
        """Scale the gradients of all processes down to this norm; returns what it was, the same in all of them."""
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over all processes, in all of them."""
        if self.processes > 1:
            distributed.all_reduce(tensor)
            tensor = tensor / self.processes
        return tensor

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and loss scaling; parameters go by their names, so that any number of processes reads it.

        All processes must call this after at least one step; what it gives is complete on the first.
        """
        complete_state(self.plain_optimizer)
        options = StateDictOptions(full_state_dict=True, cpu_offload=self.processes > 1)
        task, optimizer = get_state_dict(self.task, self.plain_optimizer, options=options)
        scaler = self.accelerator.scaler
        return {"task": task, "optimizer": optimizer, "scaler": scaler.state_dict() if scaler else None}

    def load(self, state: dict[str, Any]) -> None:
        """Put a state back, in all processes.

        Raises:
            RuntimeError, KeyError, ValueError: it is not of this task and optimizer.
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

    def gather(self, what: Any) -> list[Any]:
        """What each process has, in all of them."""
        return gather_object([what]) if self.processes > 1 else [what]

    def meet(self) -> None:
        """Wait until all processes are here: a launcher ends the others soon after the first has left."""
        self.largest(0)

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers; with several, this waits for the device."""
        if self.processes == 1:
            return number
        shared = torch.tensor(number, device=self.accelerator.device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return int(shared)


def refuse_other_plans() -> None:
    """Raises InputError if `accelerate launch` was configured to split the model by itself: `--parallel` says how."""
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() == "true":
            raise InputError(
                f"accelerate is configured to use {name}: take `accelerate launch --multi_gpu` (or torchrun), and "
                "--parallel fsdp where the model does not fit one card"
            )


def is_of_a_lost_process(error: RuntimeError) -> bool:
    """Whether it says that another process does not answer any more; gloo says so in words."""
    said = str(error)
    in_words = any(words in said for words in ("Connection closed by peer", "Connection reset by peer"))
    return in_words or (distributed.is_available() and isinstance(error, distributed.DistError))


def decide_once(choose: Callable[[], Any]) -> Any:
    """What `choose` gives, or raises, in the first process.

    The others must not look for themselves at a folder that the first has begun to write to.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return choose()
    outcome: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            outcome[0] = choose()
        except (Exception, InterruptedRun) as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
