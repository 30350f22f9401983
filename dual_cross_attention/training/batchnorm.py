"""Running statistics of batch normalization, updated once per optimizer step and alike on all ranks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNormStatistics:
    """Running mean and variance of all batch normalization layers of a module.

    A batch normalization layer updates its statistics in every forward pass. With gradient accumulation that is more
    often than the weights change, ranks diverge, and a step that fails midway has changed them. This class updates them
    once per step, from their values before the step, by the mean over its micro-batches. With one micro-batch on one
    rank, the result is that of the plain layer.

    Args:
        module: on its device.
    """

    def __init__(self, module: nn.Module):
        layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
        self._buffers = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
        self._counts = [layer.num_batches_tracked for layer in layers]
        self._before: list[Tensor] = []
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def begin_step(self) -> None:
        """Records the statistics before the first forward pass of a step."""
        self._before = [buffer.clone() for buffer in (*self._buffers, *self._counts)]
        self._sums = [torch.zeros_like(buffer) for buffer in self._buffers]

    @torch.no_grad()
    def accumulate(self, weight: float) -> None:
        """Takes the statistics after a forward and backward pass, and resets the layers to those before the step.

        Args:
            weight: of the micro-batch in the step's mean.
        """
        for total, buffer in zip(self._sums, self._buffers, strict=True):
            total.add_(buffer, alpha=weight)
        self.restore()

    @torch.no_grad()
    def end_step(self, all_reduce_mean: Callable[[Tensor], Tensor], is_skipped: Tensor | None = None) -> None:
        """Writes the statistics after the last pass of a step.

        Args:
            all_reduce_mean: a tensor's mean over all ranks; the mean of the ranks' sums of weights is 1.
            is_skipped: bool scalar on the device; where it is true, the statistics stay as before the step.
        """
        if not self._buffers:
            return
        means = all_reduce_mean(torch.cat(self._sums)).split([len(buffer) for buffer in self._buffers])
        for buffer, before, after in zip(self._buffers, self._before, means, strict=False):
            buffer.copy_(after if is_skipped is None else torch.where(is_skipped, before, after))
        for count in self._counts:
            count.add_(1 if is_skipped is None else ~is_skipped)
        self._before, self._sums = [], []

    @torch.no_grad()
    def restore(self) -> None:
        """Resets the layers to the statistics before the step."""
        for buffer, before in zip((*self._buffers, *self._counts), self._before, strict=False):
            buffer.copy_(before)
