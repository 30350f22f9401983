"""When the branches of a model are trained: a schedule over the optimizer's steps."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from dual_cross_attention.configs import TrainingConfig


@dataclass(frozen=True)
class BranchSchedule:
    """Which branches a step of the optimizer computes, and by how much their losses count.

    A branch is on in step n of N, counted from 1, if n > start · N. Before that it is not computed at all. Nothing but
    these two numbers decides, so a run that resumes continues exactly, and all ranks agree.

    Args:
        pwca_start: share of the training, in [0, 1], after which PWCA is trained.
        pwca_warmup: share of the training over which PWCA's term of the loss then grows linearly from 0 to 1.
        glca_start: share of the training, in [0, 1], after which GLCA is trained.
        pwca_every: K: from its start on, only every K-th step computes PWCA, the first one included.
    """

    pwca_start: float = 0.0
    pwca_warmup: float = 0.0
    glca_start: float = 0.0
    pwca_every: int = 1

    def scales(self, branches: Iterable[str], step: int, steps: int) -> dict[str, float]:
        """The branches that are on in a step, each with the factor of its term of the loss, in (0, 1].

        Args:
            branches: those of the model.
            step: counted from 1.
            steps: of the whole training.
        """
        scales = {"sa": 1.0, "glca": float(self.glca_is_on(step, steps)), "pwca": self._pwca_scale(step, steps)}
        return {branch: scales[branch] for branch in branches if scales[branch]}

    def glca_is_on(self, step: int, steps: int) -> bool:
        """Whether GLCA is trained in a step; of whole epochs, whether it was in any of the first `step` of `steps`."""
        return step > _exact(self.glca_start) * steps

    def leaves_out_parameters(self) -> bool:
        """Whether some steps have no gradient for some parameters: those of GLCA. PWCA's are SA's."""
        return self.glca_start > 0

    def _pwca_scale(self, step: int, steps: int) -> float:
        since = step - _exact(self.pwca_start) * steps
        warmup = _exact(self.pwca_warmup) * steps
        if since <= 0 or (math.ceil(since) - 1) % self.pwca_every:  # the first step is at most 1 after the start
            return 0.0
        return 1.0 if since >= warmup else float(since / warmup)


def _exact(share: float) -> Fraction:
    """As it is written: 0.1 of 30 steps are 3, where the float next to 0.1 could make them 4."""
    return Fraction(str(share))


def branch_schedule(config: TrainingConfig) -> BranchSchedule:
    """When the branches of the model are trained; with `freeze` all, PWCA never is."""
    pwca_start, pwca_warmup = (1.0, 0.0) if config.freeze == "all" else (config.pwca_start, config.pwca_warmup)
    return BranchSchedule(pwca_start, pwca_warmup, config.glca_start, config.pwca_every)
