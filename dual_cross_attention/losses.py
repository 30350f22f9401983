"""How the losses of the branches become one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class UncertaintyWeighting(nn.Module):
    """½ Σ (e^(−w)·L + w), with a learnable w for every branch.

    Source: DCAL (arXiv 2205.02151), section 3.4; Kendall, Gal & Cipolla 2018.

    w is a log-variance. It starts at 0, where every branch counts the same, and is projected back onto ±bound whenever
    a step has taken it further: the formula stays exact inside, and no branch can switch itself off or drown the rest.

    Args:
        branches: their names, in the order of `w`.
        bound: largest |w|; 2 lets a branch weigh between e⁻² and e² times its loss.
    """

    def __init__(self, branches: Sequence[str], bound: float = 2.0):
        super().__init__()
        if not branches or bound <= 0:
            raise ValueError(f"expected at least one branch and a positive bound, got {list(branches)} and {bound}")
        self.branches = tuple(branches)
        self.bound = bound
        self.w = nn.Parameter(torch.zeros(len(self.branches)))  # a vector: optimisers leave it out of weight decay

    def forward(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar losses by branch → the total, and the detached weights {"w_sa": …}.

        Raises:
            ValueError: other branches than those it was made for.
        """
        if set(losses) != set(self.branches):
            raise ValueError(f"expected the losses of {sorted(self.branches)}, got {sorted(losses)}")
        with torch.no_grad():
            self.w.clamp_(-self.bound, self.bound)
        stacked = torch.stack([losses[branch].float() for branch in self.branches])
        total = 0.5 * (torch.exp(-self.w) * stacked + self.w).sum()
        used = self.w.detach().clone()  # the optimiser changes w in place
        return total, {f"w_{branch}": w for branch, w in zip(self.branches, used, strict=True)}
