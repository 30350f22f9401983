"""Fine-grained visual categorization: cross-entropy on every branch, top-1 and top-5 accuracy."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from dual_cross_attention.errors import InputError, TrainingDivergedError
from dual_cross_attention.metrics.retrieval import Progress
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks.batch_mixing import BatchMixing
from dual_cross_attention.tasks.branch_schedule import BranchSchedule
from dual_cross_attention.tasks.task import Batch, LossWeights, Task, vote
from dual_cross_attention.tasks.training_noise import TrainingNoise


class FGVCTask(Task):
    """DCAL for fine-grained classification.

    "labels" of a batch are classes.

    Args:
        model: a model of `create_model(..., task="fgvc")`.
        weight_bound: largest |w| of the loss weights.
        label_smoothing: of the cross-entropy, in [0, 1].
        schedule, loss_weights, noise: see `Task`.
        mixing: of training images and their labels; None: none.
    """

    best_metric = "top1"
    epoch_metrics = ("top1", "top5", "top1_sa", "top1_glca")

    def __init__(
        self,
        model: DualCrossAttentionViT,
        weight_bound: float = 2.0,
        label_smoothing: float = 0.0,
        schedule: BranchSchedule | None = None,
        loss_weights: LossWeights = "learned",
        noise: TrainingNoise | None = None,
        mixing: BatchMixing | None = None,
    ):
        super().__init__(model, weight_bound, schedule, loss_weights, noise)
        self.label_smoothing = label_smoothing
        self.mixing = mixing or BatchMixing(0.0, 0.0, 0)

    def prepare(self, batch: Batch) -> Batch:
        """See `Task.prepare`; also mixes images and labels."""
        return self.mixing.mix(super().prepare(batch))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """See `Task.training_step`. PWCA has the target's label: the distractor must not change the prediction.

        Mixed images have the labels of both, weighted, in every branch; label smoothing applies to the result, and the
        accuracy is that of the label with the larger weight.
        """
        batch = self.prepare(batch)
        labels = batch["labels"]
        logits = self.run_model(batch, self.scales).logits
        losses = {
            branch: F.cross_entropy(logits[branch].float(), labels, label_smoothing=self.label_smoothing)
            for branch in self.scales
        }
        return self.combine(losses, logits, labels.argmax(-1) if labels.ndim == 2 else labels)

    def reset_metrics(self) -> None:
        """See `Task.reset_metrics`."""
        suffixes = ["", *(f"_{branch}" for branch in self.test_branches)]
        # A plain dict: as submodules, metrics would be part of the task that is trained and saved.
        self._accuracies = {f"top{k}{suffix}": self._accuracy(k) for suffix in suffixes for k in (1, 5)}
        self._num_valid, self._num_broken = (SumMetric().to(self.device) for _ in range(2))

    @torch.no_grad()
    def eval_step(self, batch: Batch) -> dict[str, Tensor]:
        """See `Task.eval_step`."""
        batch = self.to_device(batch)
        labels, valid = batch["labels"], batch["valid"]
        self._num_valid.update(valid.sum())
        out = self.run_model(batch).logits
        out = {branch: out[branch] for branch in self.test_branches}
        if not valid.any():
            return out
        logits = {branch: scores.float()[valid] for branch, scores in out.items()}
        together = vote({branch: logits[branch] for branch in self.model.predicting_branches})
        for suffix, scores in {"": together, **{f"_{branch}": logits[branch] for branch in logits}}.items():
            self._num_broken.update((~scores.isfinite()).sum())
            for k in (1, 5):
                self._accuracies[f"top{k}{suffix}"].update(scores, labels[valid])
        return out

    def compute_metrics(self, progress: Progress | None = None) -> dict[str, float]:
        """Accuracy in percent: "top1" and "top5" of SA and GLCA together, and of each ("top1_sa", "top5_glca", …).

        As long as GLCA is not trained, "top1" and "top5" are those of SA alone. Errors as of `Task.compute_metrics`.
        """
        if self._num_valid.compute() == 0:
            raise InputError("none of the test images can be read; the warnings above say why")
        if self._num_broken.compute() > 0:
            raise TrainingDivergedError("evaluation: the model's logits are NaN or infinite")
        return {name: 100 * accuracy.compute().item() for name, accuracy in self._accuracies.items()}

    def probabilities(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits of `eval_step` → class probabilities (B, C): "" of SA and GLCA together, "_sa", "_glca"."""
        predicting = self.model.predicting_branches
        together = vote({branch: logits[branch] for branch in predicting}) / len(predicting)
        return {"": together, **{f"_{branch}": F.softmax(scores.float(), dim=-1) for branch, scores in logits.items()}}

    def _accuracy(self, k: int) -> MulticlassAccuracy:
        num_classes = self.model.num_classes
        return MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro").to(self.device)
