"""Probability that two images, or an image and an identity, are the same, by a logistic function of their distance."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dual_cross_attention.errors import InputError


def same_probability(distances: Tensor, intercept: float, slope: float) -> Tensor:
    """1 / (1 + exp(−intercept − slope · d)), float64, of distances of any shape."""
    return torch.sigmoid(intercept + slope * distances.double())


def fit_same(same: Tensor, different: Tensor) -> tuple[float, float]:
    """Intercept and slope of `same_probability` by logistic regression; Platt 1999.

    Same and different pairs have half of the weight each, however many there are: the probability is for even odds
    beforehand. Targets are Platt's, (N + 1) / (N + 2) and 1 / (N + 2), so that the fit is finite where a threshold
    separates all pairs.

    Args:
        same: (N,) distances of pairs that are the same.
        different: (M,) those of others.

    Raises:
        InputError: no pairs of a kind, or those that are the same are on average no nearer than others.
    """
    from scipy.optimize import minimize  # not needed to use a calibrated model

    if not (len(same) and len(different)):
        raise InputError(f"expected pairs that are the same and others, got {len(same)} and {len(different)}")
    same, different = same.double(), different.double()
    if same.mean() >= different.mean():
        raise InputError(
            f"images of one identity are on average no nearer than those of others (mean distances {same.mean():.4g} "
            f"and {different.mean():.4g}; where cameras are known, those of one identity are of different cameras): "
            "train the model longer before it is calibrated"
        )
    distances = torch.cat([same, different])
    target = torch.cat([torch.full_like(one, value) for one, value in _platt_targets(same, different)])
    weight = torch.cat([torch.full_like(one, 0.5 / len(one)) for one in (same, different)])
    # In units of the spread, for which the optimizer's steps are made.
    center, spread = distances.mean(), distances.std().clamp(min=1e-12)
    scaled = (distances - center) / spread

    def loss_and_gradient(parameters) -> tuple[float, list[float]]:
        logits = parameters[0] + parameters[1] * scaled
        loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
        error = weight * (logits.sigmoid() - target)
        return loss.item(), [error.sum().item(), (error * scaled).sum().item()]

    # Convex: any start does.
    found = minimize(loss_and_gradient, [0.0, -1.0], jac=True, method="BFGS", options={"gtol": 1e-7}).x
    slope = float(found[1] / spread)
    return float(found[0] - slope * center), slope


def log_loss(same: Tensor, different: Tensor, intercept: float, slope: float) -> float:
    """Mean negative log-likelihood in nats, each kind with half of the weight; ln 2 = 0.693 is that of 0.5 for all."""
    same, different = (intercept + slope * distances.double() for distances in (same, different))
    return (F.softplus(-same).mean() + F.softplus(different).mean()).item() / 2


def _platt_targets(same: Tensor, different: Tensor) -> list[tuple[Tensor, float]]:
    return [(same, (len(same) + 1) / (len(same) + 2)), (different, 1 / (len(different) + 2))]
