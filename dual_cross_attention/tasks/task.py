"""What the training loop asks of a task."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from dual_cross_attention.models.dual_vit import DualCrossAttentionViT

Batch = dict[str, Any]


class Task(nn.Module, ABC):
    """A model with its losses and metrics.

    Attributes:
        model: what is saved, and what is used after training.
        best_metric: the key of `evaluate`'s result by which the best model is chosen; larger is better.
        epoch_metrics: the keys of `evaluate`'s result, where there, that go into an epoch's row of metrics.jsonl.
    """

    best_metric: str
    epoch_metrics: tuple[str, ...]

    def __init__(self, model: DualCrossAttentionViT):
        super().__init__()
        self.model = model

    @abstractmethod
    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch: "loss", to go back from; beside it detached scalars to log ("loss_sa", "w_sa", …)."""

    @abstractmethod
    def evaluate(self, loader: Iterable[Batch]) -> dict[str, float]:
        """Metrics over all batches, in percent. Leaves the task in evaluation mode."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The training step, so that wrappers of modules (DDP, autocast) see it."""
        return self.training_step(batch)
