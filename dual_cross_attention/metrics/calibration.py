"""Calibration of a classifier: temperature scaling, and measures of the calibration error."""

import math

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
"""Limits of a fitted temperature."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The temperature T of least mean negative log-likelihood of softmax(logits / T); Guo et al. 2017, section 4.2.

    Args:
        logits: (N, C), or log-probabilities.
        labels: (N,) the true classes.

    Returns:
        T; None where there is no such T: the loss falls until T = 0 if all images are classified correctly, and until
        T is infinite if true classes have no higher logits than the mean of all classes.
    """
    logits = logits.double()
    true = logits.gather(1, labels[:, None]).squeeze(1)
    # The loss is convex in 1 / T; these are its derivatives where 1 / T is 0 and infinite.
    if (logits.mean(1) - true).mean() >= 0 or (logits.max(1).values - true).mean() <= 0:
        return None

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits / math.exp(log_temperature), labels)

    limits = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    return math.exp(minimize_scalar(loss, bounds=limits, method="bounded", options={"xatol": 1e-5}).x)


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log of the probability of the true class, in nats, of logits (N, C) and labels (N,)."""
    return F.cross_entropy(logits.double(), labels).item()


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Σ_b |B_b| / N · |accuracy(B_b) - confidence(B_b)| over bins of equal width of the maximum probability, 0..1; Guo
    et al. 2017, equation 3. Of logits (N, C) and labels (N,)."""
    probabilities = F.softmax(logits.double(), dim=-1)
    return multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=bins, norm="l1").item()
