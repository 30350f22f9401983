"""What the training loop asks of a task."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from dual_cross_attention.losses import UncertaintyWeighting
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT

Batch = dict[str, Any]


class Task(nn.Module, ABC):
    """A model with its losses and metrics.

    Args:
        model: a model of `create_model`.
        weight_bound: largest |w| of the loss weights.

    Attributes:
        model: what is saved, and what is used after training.
        weighting: of the branches' losses; None where there is SA alone.
        best_metric: the key of `evaluate`'s result by which the best model is chosen; larger is better.
        epoch_metrics: the keys of `evaluate`'s result, where there, that go into an epoch's row of metrics.jsonl.
    """

    best_metric: str
    epoch_metrics: tuple[str, ...]

    def __init__(self, model: DualCrossAttentionViT, weight_bound: float = 2.0):
        super().__init__()
        self.model = model
        # The plain backbone is trained on its plain loss.
        self.weighting = UncertaintyWeighting(model.branches, weight_bound) if len(model.branches) > 1 else None

    @abstractmethod
    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch: "loss", to go back from; beside it detached scalars to log ("loss_sa", "w_sa", …)."""

    @abstractmethod
    def evaluate(self, loader: Iterable[Batch]) -> dict[str, float]:
        """Metrics over all batches, in percent. Leaves the task in evaluation mode."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The training step, so that wrappers of modules (DDP, autocast) see it."""
        return self.training_step(batch)

    def combine(self, losses: dict[str, Tensor], logits: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """What `training_step` gives: the losses of the branches made one, and the accuracy of SA and GLCA together.

        Args:
            losses: of each branch, a scalar.
            logits: of each branch, (B, classes).
            labels: (B,)
        """
        total, weights = self.weighting(losses) if self.weighting else (losses["sa"], {})
        correct = (vote(logits).argmax(-1) == labels).float().mean()
        return {
            "loss": total,
            **{f"loss_{branch}": loss.detach() for branch, loss in losses.items()},
            **weights,
            "accuracy": 100 * correct,
        }


def vote(logits: dict[str, Tensor]) -> Tensor:
    """softmax(SA) + softmax(GLCA), DCAL section 3.4: {"sa": (B, C), "glca": (B, C)} → (B, C)."""
    return sum(F.softmax(logits[branch].detach().float(), dim=-1) for branch in ("sa", "glca") if branch in logits)
