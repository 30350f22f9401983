"""Exponential moving average (EMA) of a model's weights, which is evaluated and saved beside them."""

from collections.abc import Iterator
from contextlib import contextmanager

from timm.utils import ModelEmaV3
from torch import Tensor

from dual_cross_attention.tasks.task import Task


class WeightAverage:
    """timm's `ModelEmaV3` of a task's model: e ← decay · e + (1 − decay) · w after each step, of floating-point buffers
    too. The first step sets e = w.

    Args:
        task: with its weights on the device, and not sharded.
        decay: in [0, 1).
    """

    def __init__(self, task: Task, decay: float):
        self.task = task
        self._ema = ModelEmaV3(task.model, decay)  # a copy, no submodule of the task: it is not trained

    def update(self, step: int) -> None:
        """Takes the weights after an optimizer step, counted from 1 since the start of the run."""
        self._ema.update(self.task.model, step)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within this context, the task's model is the one with the averaged weights."""
        trained, self.task.model = self.task.model, self._ema.module
        try:
            yield
        finally:
            self.task.model = trained

    def compile_blocks(self) -> None:
        """See `DualCrossAttentionViT.compile_blocks`."""
        self._ema.module.compile_blocks()

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, by the names of the model."""
        return self._ema.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor] | None) -> None:
        """Loads what `state_dict` returns; None, of a checkpoint without: starts at the weights of the model."""
        if state is None:
            self._ema.set(self.task.model)
        else:
            self._ema.module.load_state_dict(state)
