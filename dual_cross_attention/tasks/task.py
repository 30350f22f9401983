"""The interface between a task and the training and evaluation loops."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dual_cross_attention.losses import FixedWeighting, UncertaintyWeighting
from dual_cross_attention.metrics.retrieval import Progress
from dual_cross_attention.models.attention_trace import DualOutput, EncodedImages
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks.branch_schedule import BranchSchedule
from dual_cross_attention.tasks.training_noise import TrainingNoise

Batch = dict[str, Any]
LossWeights = Literal["learned", "fixed", "sum", "mean"]


class Task(nn.Module, ABC):
    """A model with its losses and metrics.

    A batch is what `data.dataset.collate` returns, on any device: "images" (B, 3, H, W), "labels" (B,), "indices" (B,)
    and "valid" (B,); or it has the fields of `EncodedImages` in place of images. An evaluation is `reset_metrics`, then
    `eval_step` on every batch, then `compute_metrics`; see `inference.evaluation_loop`.

    Args:
        model: a model of `create_model`.
        weight_bound: largest |w| of the loss weights.
        schedule: when its branches are trained; None: always.
        loss_weights: how the losses of the branches are combined: "learned" is `UncertaintyWeighting`, the others are
            kinds of `FixedWeighting`.
        noise: in training images and labels; None: none.

    Attributes:
        model: saved in checkpoints, and used after training.
        weighting: of the branches' losses; None for SA alone.
        best_metric: the key of `compute_metrics` by which the best model is chosen; larger is better.
        epoch_metrics: the keys of `compute_metrics` that go into an epoch's row of metrics.jsonl, where they exist.
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
        noise: TrainingNoise | None = None,
    ):
        super().__init__()
        self.noise = noise or TrainingNoise(0.0, 0.0, 0)
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
    def device(self) -> torch.device:
        """Of the parameters; CPU of a model without any, which ONNX Runtime runs."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @property
    def test_branches(self) -> list[str]:
        """The branches of the model that an evaluation runs: all but PWCA."""
        return self.model.test_branches

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

    def prepare(self, batch: Batch) -> Batch:
        """A training batch as the model gets it, with what is random and not part of reading an image: noise.

        Samples from torch's generators.
        """
        return self.noise.add(batch)

    @abstractmethod
    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch: "loss", for the backward pass, and detached scalars to log ("loss_sa", "w_sa", …)."""

    @abstractmethod
    def reset_metrics(self) -> None:
        """Discards what `eval_step` has accumulated."""

    @abstractmethod
    def eval_step(self, batch: Batch) -> dict[str, Tensor]:
        """Accumulates the metrics of a test batch in this process, without the images that are not "valid".

        Runs the model even if no image is valid: under FSDP, other ranks take part in the pass.

        Returns:
            What the model says of each image of the batch, by branch: logits (B, classes), or features (B, D).
        """

    @abstractmethod
    def compute_metrics(self, progress: Progress | None = None) -> dict[str, float]:
        """Metrics of all batches since `reset_metrics`, over all ranks, in percent; a collective.

        Args:
            progress: wraps a list of steps that take long and is iterated in its place, like `tqdm`.

        Raises:
            TrainingDivergedError: an output of the model is not finite.
            InputError: too few images could be read.
        """

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The training step: wrappers of modules, such as DDP, hook `forward`."""
        return self.training_step(batch)

    def run_model(
        self, batch: Batch, branches: Collection[str] | None = None, distractors: Tensor | None = None
    ) -> DualOutput:
        """The model's pass over a batch: of images, or of features of the frozen backbone ("tokens" and "scores").

        Args:
            batch: on the device of the model.
            branches, distractors: see `DualCrossAttentionViT.forward`.
        """
        if "tokens" in batch:
            return self.model.forward_encoded(EncodedImages(batch["tokens"], batch.get("scores")), branches)
        given = batch["images"], distractors, branches, batch.get("distractor_images")
        return self.model(*given, batch["cameras"]) if "cameras" in batch else self.model(*given)

    def to_device(self, batch: Batch) -> Batch:
        """A test batch with its tensors on the device of the model."""
        return {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def combine(self, losses: dict[str, Tensor], logits: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """What `training_step` returns: the combined loss, its parts, and the accuracy of SA and GLCA together.

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
