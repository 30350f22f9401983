"""Confidence scores for detecting unknown classes; higher means more likely a known class.

All are in float64, of logits (N, C) by branch; each branch has its own temperature.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Score = Literal["probability", "energy", "agreement"]
"""The scores, by what they are computed of."""


def log_mean_probability(logits: Mapping[str, Tensor]) -> Tensor:
    """The logarithm of the mean of the branches' softmax, (N, C), finite where the logits are."""
    each = torch.stack([F.log_softmax(branch.double(), dim=-1) for branch in logits.values()])
    return torch.logsumexp(each, dim=0) - math.log(len(logits))


def maximum_probability(log_probabilities: Tensor) -> Tensor:
    """The probability of the most probable class, (N,), of log-probabilities (N, C); Hendrycks and Gimpel 2017."""
    return log_probabilities.max(dim=-1).values.exp()


def energy(logits: Mapping[str, Tensor], temperatures: Mapping[str, float]) -> Tensor:
    """The negative free energy, T · log Σ exp(z / T), mean over the branches, (N,); Liu et al. 2020, equation 4."""
    each = [
        temperatures[name] * torch.logsumexp(branch.double() / temperatures[name], dim=-1)
        for name, branch in logits.items()
    ]
    return torch.stack(each).mean(dim=0)


def agreement(log_probabilities: Tensor, others: Tensor) -> Tensor:
    """Overlap of two branches' class probabilities (Bhattacharyya coefficient), Σ_c √(p_c q_c) in [0, 1], (N,)."""
    return torch.logsumexp((log_probabilities + others) / 2, dim=-1).exp()


def confidence(
    score: Score, logits: Mapping[str, Tensor], temperatures: Mapping[str, float], together: float
) -> Tensor:
    """A score of the answer that some branches give together, (N,).

    Args:
        score: which one. "agreement" needs the logits of two branches.
        logits: (N, C) of the branches that answer.
        temperatures: of these branches.
        together: the temperature of the logarithm of their mean probability.
    """
    if score == "probability":
        return maximum_probability(F.log_softmax(log_mean_probability(logits) / together, dim=-1))
    if score == "energy":
        return energy(logits, temperatures)
    one, other = (F.log_softmax(branch.double() / temperatures[name], dim=-1) for name, branch in logits.items())
    return agreement(one, other)


def threshold_that_keeps(scores: Tensor, share: float) -> float:
    """The threshold that at least a share of the scores (N,) reaches, as few as possible.

    It lies midway between the lowest score that is kept and the next one, so that rounding changes no decision.
    """
    ordered = scores.double().sort(descending=True).values
    kept = min(len(ordered), max(1, math.ceil(share * len(ordered) - 1e-9)))
    last = ordered[kept - 1].item()
    return last if kept == len(ordered) else (last + ordered[kept].item()) / 2
