"""What the steps of an epoch reported, kept on the device until somebody looks.

Reading a number from a GPU waits for the GPU. So every step's scalars stay there, and come over together every few
steps; a loss that is not finite is then named with the exact step it came from.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dual_cross_attention.errors import TrainingDivergedError

LOSS_SCALE = "loss_scale"
"""The scalar of fp16's loss scaling, after the step."""
SHARED_LOSS = "shared_loss"
"""The mean of all processes' losses, where no other scalar tells all of them that one of theirs is not finite."""
SMALLEST_SCALE = 2.0**-10
"""It starts at 2¹⁶ and halves with every overflow, so 27 in a row are no accident."""
Sums = dict[str, tuple[float, float]]


class StepLog:
    """Means of the scalars of an epoch's steps.

    Args:
        interval: steps between two looks; 1 on CPU costs nothing.

    Attributes:
        step: the last one that was looked at, since the start of the run.
        latest: its scalars.
    """

    def __init__(self, interval: int):
        self.interval = interval
        self.start_epoch(0)

    def start_epoch(
        self, steps: int, sums: Mapping[str, tuple[float, float]] | None = None, latest: dict[str, float] | None = None
    ) -> None:
        """Forget the epoch before.

        Args:
            steps: that were done since the start of the run.
            sums, latest: what was seen of this epoch already.
        """
        self.step = steps
        self.latest: dict[str, float] = dict(latest or {})
        self._pending: list[tuple[dict[str, Tensor], float]] = []
        self._sums: Sums = {name: (total, weight) for name, (total, weight) in (sums or {}).items()}

    def add(self, scalars: dict[str, Tensor], weight: float = 1.0) -> None:
        """One step's scalars, on their device; not every step needs to have all. Looks every `interval` steps.

        Args:
            weight: the share of the step that they are of, where several processes have one each.
        """
        self._pending.append(({name: value.detach().float() for name, value in scalars.items()}, weight))
        if len(self._pending) >= self.interval:
            self.flush()

    def flush(self) -> None:
        """Bring over what is pending.

        Raises:
            TrainingDivergedError: a value is NaN or infinite, or the scaling of fp16 has found no end.
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
        """Of every scalar of the epoch so far: the sum of its weighted values, and of the weights."""
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


def combine(of_processes: list[Sums]) -> Sums:
    """The sums of several processes as one."""
    names = dict.fromkeys(name for sums in of_processes for name in sums)
    there = {name: [sums[name] for sums in of_processes if name in sums] for name in names}
    return {name: (math.fsum(t for t, _ in each), math.fsum(w for _, w in each)) for name, each in there.items()}


def means(sums: Sums) -> dict[str, float]:
    """The mean of every scalar over the steps that had it."""
    return {name: total / weight for name, (total, weight) in sums.items() if weight}
