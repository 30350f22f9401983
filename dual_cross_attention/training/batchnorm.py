"""Batch normalization's running statistics, moved once a step of the optimizer, whoever saw its micro-batches."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """Running mean and variance of all batch normalizations of a task.

    By itself, such a module moves its statistics with every forward pass: accumulation then moves them more often than
    the weights, every process has others, and a step that is given up halfway has moved them already. Here a step moves
    them once, from where they were before it, by the mean over its micro-batches. With one micro-batch on one process
    that is what the module does by itself.

    Args:
        task: on its device.
    """

    def __init__(self, task: nn.Module):
        moving = [module for module in task.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
        self._buffers = [buffer for module in moving for buffer in (module.running_mean, module.running_var)]
        self._counts = [module.num_batches_tracked for module in moving]
        self._before: list[Tensor] = []
        self._moved: list[Tensor] = []

    @torch.no_grad()
    def start(self) -> None:
        """Before the first forward pass of a step."""
        self._before = [buffer.clone() for buffer in (*self._buffers, *self._counts)]
        self._moved = [torch.zeros_like(buffer) for buffer in self._buffers]

    @torch.no_grad()
    def add(self, weight: float) -> None:
        """After a pass, forward and backward, which has this share of the step; until its end, nothing has moved."""
        for moved, buffer in zip(self._moved, self._buffers, strict=True):
            moved.add_(buffer, alpha=weight)
        self.undo()

    @torch.no_grad()
    def finish(self, average: Callable[[Tensor], Tensor], is_void: Tensor | None = None) -> None:
        """After the last forward pass.

        Args:
            average: a tensor's mean over all processes, whose shares come to 1 in the mean.
            is_void: a scalar; where it is true, the step changes nothing.
        """
        if not self._buffers:
            return
        moved = average(torch.cat(self._moved)).split([len(buffer) for buffer in self._buffers])
        for buffer, before, after in zip(self._buffers, self._before, moved, strict=False):
            buffer.copy_(after if is_void is None else torch.where(is_void, before, after))
        for count in self._counts:
            count.add_(1 if is_void is None else ~is_void)
        self._before, self._moved = [], []

    @torch.no_grad()
    def undo(self) -> None:
        """As before the step, if it is given up."""
        for buffer, before in zip((*self._buffers, *self._counts), self._before, strict=False):
            buffer.copy_(before)
