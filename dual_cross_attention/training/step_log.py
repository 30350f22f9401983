"""What the steps of an epoch reported, kept on the device until somebody looks.

Reading a number from a GPU waits for the GPU. So every step's scalars stay there, and come over together every few steps;
a loss that is not finite is then named with the exact step it came from.
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
        self.names: list[str] = []
        self._pending: list[Tensor] = []
        self._sums: dict[str, float] = {}
        self._count = 0
        self.latest: dict[str, float] = {}

    def add(self, scalars: dict[str, Tensor]) -> None:
        """One step's scalars, on their device. Looks at them every `interval` steps."""
        self.names = self.names or sorted(scalars)
        self._pending.append(torch.stack([scalars[name].detach().float() for name in self.names]))
        if len(self._pending) >= self.interval:
            self.flush()

    def flush(self) -> None:
        """Bring over what is pending.

        Raises:
            TrainingDivergedError: a value is NaN or infinite.
        """
        if not self._pending:
            return
        rows = torch.stack(self._pending).tolist()
        self._pending.clear()
        for row in rows:
            self.step += 1
            self.latest = dict(zip(self.names, row, strict=True))
            self._check_finite()
            self._count += 1
            for name, value in self.latest.items():
                self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The mean of every scalar over the epoch's steps so far."""
        self.flush()
        return {name: total / self._count for name, total in self._sums.items()}

    def _check_finite(self) -> None:
        broken = {name: value for name, value in self.latest.items() if not math.isfinite(value)}
        if not broken:
            return
        parts = [name for name in broken if name != "loss"] or ["loss"]
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
