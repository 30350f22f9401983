"""The loss of a re-identification branch, and how the losses of the branches become one."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UncertaintyWeighting(nn.Module):
    """½ Σ (e^(−w)·L + w), with a learnable w for every branch.

    Source: DCAL (arXiv 2205.02151), section 4.1; Kendall, Gal & Cipolla 2018.

    w is a log-variance. It starts at 0, where every branch counts the same, and is projected back onto ±bound whenever
    a step has taken it further: the formula is exact inside the interval, and bounds the weight ratio of two branches.

    Args:
        branches: their names, in the order of `w`.
        bound: largest |w|; 2 lets a branch weigh between e⁻² and e² times its loss.

    Attributes:
        absent: the branches that the last forward pass had no loss of; their w has a gradient of 0.
    """

    def __init__(self, branches: Sequence[str], bound: float = 2.0):
        super().__init__()
        if not branches or bound <= 0:
            raise ValueError(f"expected at least one branch and a positive bound, got {list(branches)} and {bound}")
        self.branches = tuple(branches)
        self.bound = bound
        self.absent: frozenset[str] = frozenset()
        self.w = nn.Parameter(torch.zeros(len(self.branches)))  # a vector: optimizers leave it out of weight decay

    def forward(
        self, losses: Mapping[str, Tensor], scales: Mapping[str, float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar losses by branch → the total, and the detached weights {"w_sa": …} of all branches.

        Args:
            losses: of the branches that are on.
            scales: the branches that are on, each with a factor s of its whole term, s·(e^(−w)·L + w), so that it does
                not move where w is drawn to; None: all, with 1.

        Raises:
            ValueError: losses of other branches than those.
        """
        scales = dict.fromkeys(self.branches, 1.0) if scales is None else scales
        check_branches(losses, scales, self.branches)
        self.project()
        self.absent = frozenset(self.branches) - frozenset(losses)
        if not self.absent and all(scale == 1.0 for scale in scales.values()):
            stacked = torch.stack([losses[branch].float() for branch in self.branches])
            total = 0.5 * (torch.exp(-self.w) * stacked + self.w).sum()
        else:  # one by one: an index tensor would be copied to the device in every step
            terms = [
                scales[branch] * (torch.exp(-self.w[place]) * losses[branch].float() + self.w[place])
                for place, branch in enumerate(self.branches)
                if branch in losses
            ]
            total = 0.5 * torch.stack(terms).sum()
        used = self.w.detach().clone()  # the optimizer changes w in place
        return total, {f"w_{branch}": w for branch, w in zip(self.branches, used, strict=True)}

    @torch.no_grad()
    def project(self) -> None:
        """Clamps w to ±bound; called at the start of every forward pass."""
        self.w.clamp_(-self.bound, self.bound)


class FixedWeighting(nn.Module):
    """The losses of the branches made one without learnable weights, so there is no w.

    With s the factors of the branches that are on (1 but during a warm-up): "fixed" is ½ Σ s·L, what
    `UncertaintyWeighting` computes while all w are 0; "sum" is Σ s·L; "mean" is Σ s·L / Σ s.

    Args:
        branches: their names.
        kind: one of the three.
    """

    def __init__(self, branches: Sequence[str], kind: Literal["fixed", "sum", "mean"]):
        super().__init__()
        if not branches or kind not in ("fixed", "sum", "mean"):
            raise ValueError(f"expected at least one branch, and fixed, sum or mean; got {list(branches)} and '{kind}'")
        self.branches, self.kind = tuple(branches), kind

    def forward(
        self, losses: Mapping[str, Tensor], scales: Mapping[str, float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `UncertaintyWeighting.forward`; the weights to report are none."""
        scales = dict.fromkeys(self.branches, 1.0) if scales is None else scales
        check_branches(losses, scales, self.branches)
        total = torch.stack([scales[branch] * loss.float() for branch, loss in losses.items()]).sum()
        return total * {"fixed": 0.5, "sum": 1.0, "mean": 1.0 / sum(scales.values())}[self.kind], {}


def check_branches(losses: Mapping[str, Tensor], scales: Mapping[str, float], branches: Sequence[str]) -> None:
    """Raises ValueError unless there is a loss of every branch that is on, and of no other."""
    if not losses or set(losses) != set(scales) or not set(losses) <= set(branches):
        raise ValueError(f"expected the losses of {sorted(scales)}, got {sorted(losses)}")


class ReIDLoss(nn.Module):
    """Cross-entropy of the identity, plus a batch-hard triplet loss on the feature before the neck.

    For every image of the batch, the farthest of the same identity and the nearest of another:
    log(1 + exp(d_positive − d_negative)), averaged (soft margin), or max(0, d_positive − d_negative + margin).
    d is Euclidean, of features that are not normalized.

    Source: Hermans, Beyer & Leibe 2017, "In Defense of the Triplet Loss", section 2, and TransReID (arXiv 2102.04378),
    section 3.1, whose recipe DCAL takes.

    Args:
        label_smoothing: of the cross-entropy, in [0, 1].
        margin: of the triplet loss; None is the soft margin.
    """

    def __init__(self, label_smoothing: float = 0.0, margin: float | None = None):
        super().__init__()
        self.label_smoothing = label_smoothing
        self.margin = margin

    def forward(self, logits: Tensor, features: Tensor, identities: Tensor) -> Tensor:
        """Logits (B, identities) from after the neck, features (B, D) from before it, labels (B,) → a scalar."""
        with torch.autocast(features.device.type, enabled=False):
            cross_entropy = F.cross_entropy(logits.float(), identities, label_smoothing=self.label_smoothing)
            return cross_entropy + batch_hard_triplet(features.float(), identities, self.margin)


def batch_hard_triplet(features: Tensor, identities: Tensor, margin: float | None = None) -> Tensor:
    """The triplet part of `ReIDLoss`: (B, D) and (B,) → a scalar, averaged over images that have both sides.

    Uses masks: library miners select pairs by index, which synchronizes with the GPU.
    """
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    same = identities[:, None] == identities[None]
    itself = torch.eye(len(identities), dtype=torch.bool, device=same.device)
    # Indices, so that of equal distances one has the gradient.
    farthest = distances.masked_fill(~same | itself, -math.inf).argmax(1, keepdim=True)
    nearest = distances.masked_fill(same, math.inf).argmin(1, keepdim=True)
    gap = (distances.gather(1, farthest) - distances.gather(1, nearest)).squeeze(1)
    loss = F.softplus(gap) if margin is None else F.relu(gap + margin)
    has_both = (same & ~itself).any(1) & (~same).any(1)
    return (loss * has_both).sum() / has_both.sum().clamp(min=1)
