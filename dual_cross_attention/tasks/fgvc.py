"""Fine-grained visual categorization: cross-entropy on every branch, top-1 and top-5 accuracy."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from dual_cross_attention.errors import InputError, TrainingDivergedError
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks.branch_schedule import BranchSchedule
from dual_cross_attention.tasks.task import Batch, LossWeights, Task, vote


class FGVCTask(Task):
    """DCAL for classes that look almost the same.

    Training batches are dicts of "images" (B, 3, H, W) and "labels" (B,), the classes; test batches have "valid" (B,)
    bool, too, and images that are not valid are left out.

    Args:
        model: a model of `create_model(..., task="fgvc")`.
        weight_bound: largest |w| of the loss weights.
        label_smoothing: of the cross-entropy, in [0, 1].
        schedule, loss_weights: see `Task`.
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
    ):
        super().__init__(model, weight_bound, schedule, loss_weights)
        self.label_smoothing = label_smoothing

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """See `Task.training_step`. PWCA has the target's label: the distractor must not change the answer."""
        labels = batch["labels"]
        logits = self.model(batch["images"], None, self.scales).logits
        losses = {
            branch: F.cross_entropy(logits[branch].float(), labels, label_smoothing=self.label_smoothing)
            for branch in self.scales
        }
        return self.combine(losses, logits, labels)

    @torch.no_grad()
    def evaluate(self, loader: Iterable[Batch]) -> dict[str, float]:
        """Accuracy in percent: "top1" and "top5" of SA and GLCA together, and of each ("top1_sa", "top5_glca", …).

        As long as GLCA is not trained, "top1" and "top5" are those of SA alone.

        Raises:
            TrainingDivergedError: the model's output is not finite.
            InputError: no image could be read.
        """
        self.eval()
        device = next(self.parameters()).device
        branches = [branch for branch in self.model.branches if branch != "pwca"]
        suffixes = ["", *(f"_{branch}" for branch in branches)]
        meters = {f"top{k}{suffix}": self._meter(k, device) for suffix in suffixes for k in (1, 5)}
        seen, broken = SumMetric().to(device), SumMetric().to(device)  # of all processes, like the others
        for batch in loader:
            labels, valid = (batch[name].to(device, non_blocking=True) for name in ("labels", "valid"))
            seen.update(valid.sum())
            logits = self.model(batch["images"].to(device, non_blocking=True)).logits
            if not valid.any():  # asked after the pass: under FSDP, other processes take part in it
                continue
            logits = {branch: logits[branch].float()[valid] for branch in branches}
            together = vote({branch: logits[branch] for branch in self.model.predicting_branches})
            for suffix, scores in {"": together, **{f"_{branch}": logits[branch] for branch in branches}}.items():
                broken.update((~scores.isfinite()).sum())
                for k in (1, 5):
                    meters[f"top{k}{suffix}"].update(scores, labels[valid])
        if seen.compute() == 0:
            raise InputError("none of the test images can be read; the warnings above say why")
        if broken.compute() > 0:
            raise TrainingDivergedError("evaluation: the model's logits are NaN or infinite")
        return {name: 100 * meter.compute().item() for name, meter in meters.items()}

    def _meter(self, k: int, device: torch.device) -> MulticlassAccuracy:
        num_classes = self.model.backbone.num_classes
        return MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro").to(device)
