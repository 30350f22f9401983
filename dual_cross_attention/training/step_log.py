"""What the steps of an epoch reported, kept on the device until somebody looks.

Reading a number from a GPU waits for the GPU. So every step's scalars stay there, and come over together every few
steps; a loss that is not finite is then named with the exact step it came from.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dual_cross_attention.errors import TrainingDivergedError


class StepLog:
    """Means of the scalars of an epoch's steps.

    Args:
        interval: steps between two looks; 1 on CPU costs nothing.
        last_checkpoint: says what a diverged run can go back to.
    """

    def __init__(self, interval: int, last_checkpoint: Callable[[], str]):
        self.interval = interval
        self.last_checkpoint = last_checkpoint
        self.start_epoch(0)

    def start_epoch(self, first_step: int) -> None:
        """Forget the epoch before; `first_step` is the number of the next step since the start of the run."""
        self.step = first_step
        self.latest: dict[str, float] = {}
        self._pending: list[dict[str, Tensor]] = []
        self._values: dict[str, list[float]] = {}

    def add(self, scalars: dict[str, Tensor]) -> None:
        """One step's scalars, on their device; not every step needs to have all. Looks every `interval` steps."""
        self._pending.append({name: value.detach().float() for name, value in scalars.items()})
        if len(self._pending) >= self.interval:
            self.flush()

    def flush(self) -> None:
        """Bring over what is pending.

        Raises:
            TrainingDivergedError: a value is NaN or infinite.
        """
        if not self._pending:
            return
        values = iter(
            torch.stack([value for step in self._pending for value in step.values()]).tolist()
        )  # one transfer
        steps = [dict(zip(step, values, strict=False)) for step in self._pending]
        self._pending.clear()
        for scalars in steps:
            self.step += 1
            self._check_finite(scalars)
            self.latest |= scalars
            for name, value in scalars.items():
                self._values.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        """The mean of every scalar over those steps of the epoch that had it."""
        self.flush()
        return {name: math.fsum(values) / len(values) for name, values in self._values.items()}

    def _check_finite(self, scalars: dict[str, float]) -> None:
        broken = {name: value for name, value in scalars.items() if not math.isfinite(value)}
        if not broken:
            return
        # The branch is the cause; the total, its gradient and w only follow.
        parts = [name for name in broken if name.startswith("loss_")] or list(broken)
        named = ", ".join(
            f"the gradient's norm is {broken[name]}" if name == "grad_norm"
            else f"the loss of branch '{name.removeprefix('loss_')}' is {broken[name]}" if name.startswith("loss_")
            else f"{name} is {broken[name]}"
            for name in parts
        )  # fmt: skip
        raise TrainingDivergedError(
            f"training diverged at step {self.step}: {named}; {self.last_checkpoint()}; "
            "a lower --lr, a warm-up (--warmup_epochs 5), or --precision bf16 or fp32 may help"
        )
