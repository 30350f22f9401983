"""What the training loop asks of a task."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from dual_cross_attention.losses import FixedWeighting, UncertaintyWeighting
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks.branch_schedule import BranchSchedule

Batch = dict[str, Any]
LossWeights = Literal["learned", "fixed", "sum", "mean"]


class Task(nn.Module, ABC):
    """A model with its losses and metrics.

    Args:
        model: a model of `create_model`.
        weight_bound: largest |w| of the loss weights.
        schedule: when its branches are trained; None: always.
        loss_weights: how the losses of the branches become one: "learned" is `UncertaintyWeighting`, the others are
            kinds of `FixedWeighting`.

    Attributes:
        model: what is saved, and what is used after training.
        weighting: of the branches' losses; None where there is SA alone.
        best_metric: the key of `evaluate`'s result by which the best model is chosen; larger is better.
        epoch_metrics: the keys of `evaluate`'s result, where there, that go into an epoch's row of metrics.jsonl.
        scales: the branches that the current step trains, each with the factor of its term of the loss.
    """

    best_metric: str
    epoch_metrics: tuple[str, ...]

    def __init__(
        self,
        model: DualCrossAttentionViT,
        weight_bound: float = 2.0,
        schedule: BranchSchedule | None = None,
        loss_weights: LossWeights = "learned",
    ):
        super().__init__()
        self.model = model
        self.schedule = schedule or BranchSchedule()
        self.scales = dict.fromkeys(model.branches, 1.0)
        self._trained_together: set[tuple[str, ...]] = set()
        # The plain backbone is trained on its plain loss.
        self.weighting: UncertaintyWeighting | FixedWeighting | None = None
        if len(model.branches) > 1 and loss_weights == "learned":
            self.weighting = UncertaintyWeighting(model.branches, weight_bound)
        elif len(model.branches) > 1:
            self.weighting = FixedWeighting(model.branches, loss_weights)

    @property
    def leaves_out_parameters(self) -> bool:
        """Whether some steps have no gradient for some parameters."""
        return self.model.has_glca and self.schedule.leaves_out_parameters()

    def begin_step(self, step: int, steps: int) -> bool:
        """Called before a step of the optimizer, and before an evaluation with the step that it follows.

        Decides which branches are trained. As long as GLCA is not, the model's predictions are those of SA alone.

        Args:
            step: counted from 1.
            steps: of the whole training.

        Returns:
            Whether these branches are trained together for the first time in this process.
        """
        self.scales = self.schedule.scales(self.model.branches, step, steps)
        self.model.glca_is_trained = self.schedule.glca_is_on(step, steps)
        together = tuple(self.scales)
        is_new = together not in self._trained_together
        self._trained_together.add(together)
        return is_new

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
            losses: of each branch that is on, a scalar.
            logits: of each branch that is on, (B, classes).
            labels: (B,)
        """
        total, weights = self.weighting(losses, self.scales) if self.weighting else (losses["sa"], {})
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
