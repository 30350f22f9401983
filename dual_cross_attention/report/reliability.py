"""Reliability diagram: accuracy of predictions by their probability."""

from dataclasses import dataclass

import numpy as np

from dual_cross_attention.metrics.calibration import BINS


@dataclass(frozen=True)
class Reliability:
    """Predictions in bins of equal width of the probability of the predicted class (Guo et al. 2017, section 2).

    Args:
        counts: (bins,) number of predictions; accuracy, confidence: (bins,) their means, 0..1, NaN in an empty bin.
    """

    counts: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error, 0..1: Σ_b |B_b| / N · |accuracy(B_b) - confidence(B_b)|."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.counts * gaps).sum() / self.counts.sum())


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Reliability:
    """Of N predictions, at least one.

    Args:
        confidence: (N,) probability of the predicted class, 0..1.
        correct: (N,) bool.
    """
    of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (lower, upper]
    counts = np.bincount(of, minlength=bins)
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(of, weights=correct, minlength=bins) / counts
        mean = np.bincount(of, weights=confidence, minlength=bins) / counts
    return Reliability(counts, accuracy, mean)
