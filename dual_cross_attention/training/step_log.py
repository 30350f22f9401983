"""Scalars of an epoch's steps, kept on the device and read every few steps.

Reading a value from a GPU synchronizes with it. So the scalars of every step stay on the device and are copied together
every few steps; a loss that is not finite is then reported with the exact step that it came from.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dual_cross_attention.errors import TrainingDivergedError

LOSS_SCALE = "loss_scale"
"""Name of the scalar: factor of fp16's loss scaling after the step."""
SHARED_LOSS = "shared_loss"
"""Name of the scalar: mean of all ranks' losses, for fp16, where no other scalar is alike on all ranks."""
SMALLEST_SCALE = 2.0**-10
"""Below this factor, training has diverged: it starts at 2¹⁶, and every overflow halves it, so that is 27 in a row."""
Sums = dict[str, tuple[float, float]]


class StepLog:
    """Means of the scalars of an epoch's steps.

    Args:
        interval: steps between two reads; 1 costs nothing on a CPU.

    Attributes:
        step: the last one that was read, since the start of the run.
        latest: its scalars.
    """

    def __init__(self, interval: int):
        self.interval = interval
        self.start_epoch(0)

    def start_epoch(
        self, steps: int, sums: Mapping[str, tuple[float, float]] | None = None, latest: dict[str, float] | None = None
    ) -> None:
        """Resets the sums.

        Args:
            steps: done since the start of the run.
            sums, latest: of this epoch so far, where a run resumes within it.
        """
        self.step = steps
        self.latest: dict[str, float] = dict(latest or {})
        self._pending: list[tuple[dict[str, Tensor], float]] = []
        self._sums: Sums = {name: (total, weight) for name, (total, weight) in (sums or {}).items()}

    def add(self, scalars: dict[str, Tensor], weight: float = 1.0) -> None:
        """Adds one step's scalars, on their device; steps may lack some. Reads every `interval` steps.

        Args:
            weight: fraction of the step that they are means of, with several ranks.
        """
        self._pending.append(({name: value.detach().float() for name, value in scalars.items()}, weight))
        if len(self._pending) >= self.interval:
            self.flush()

    def flush(self) -> None:
        """Reads the pending scalars.

        Raises:
            TrainingDivergedError: a value is NaN or infinite, or the loss scale of fp16 falls without end.
        """
        pending, self._pending = self._pending, []
        scalars = [value for step, _ in pending for value in step.values()]
        values = iter(torch.stack(scalars).tolist() if scalars else ())  # one transfer
        for step, weight in pending:
            self.step += 1
            read = dict(zip(step, values, strict=False))
            self._check_finite(read)
            self.latest |= read
            for name, value in read.items():
                total, weights = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = total + weight * value, weights + weight

    def sums(self) -> Sums:
        """For every scalar of the epoch so far: the sum of its weighted values, and the sum of the weights."""
        self.flush()
        return dict(self._sums)

    def _check_finite(self, scalars: dict[str, float]) -> None:
        if scalars.get(LOSS_SCALE, math.inf) < SMALLEST_SCALE:
            raise TrainingDivergedError(
                f"training diverged at step {self.step}: gradients overflow in fp16 however small the loss is scaled "
                f"(by {scalars[LOSS_SCALE]:.2g})"
            )
        broken = {name: value for name, value in scalars.items() if not math.isfinite(value)}
        if not broken:
            return
        # The branch is the cause; the total, its gradient and w only follow.
        parts = [name for name in broken if name.startswith("loss_")] or list(broken)
        named = ", ".join(
            f"the gradient's norm is {broken[name]}" if name == "grad_norm"
            else f"the loss of one of the processes is {broken[name]}" if name == SHARED_LOSS
            else f"the loss of branch '{name.removeprefix('loss_')}' is {broken[name]}" if name.startswith("loss_")
            else f"{name} is {broken[name]}"
            for name in parts
        )  # fmt: skip
        raise TrainingDivergedError(f"training diverged at step {self.step}: {named}")


def combine(of_ranks: list[Sums]) -> Sums:
    """Adds up the sums of several ranks."""
    names = dict.fromkeys(name for sums in of_ranks for name in sums)
    by_name = {name: [sums[name] for sums in of_ranks if name in sums] for name in names}
    return {name: (math.fsum(t for t, _ in each), math.fsum(w for _, w in each)) for name, each in by_name.items()}


def means(sums: Sums) -> dict[str, float]:
    """The mean of every scalar over the steps that had it."""
    return {name: total / weight for name, (total, weight) in sums.items() if weight}
