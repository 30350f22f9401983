"""Confidence interval of the difference between two training methods, over seeds and test images.

Two sources of chance are in such a difference: the seeds of the trainings, and the images that make the test split.
Each has an interval of its own, and the wider one is reported.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from dual_cross_attention.errors import InputError


class DifferenceInterval(NamedTuple):
    """Difference of two methods, method minus baseline, in the unit of the scores.

    Attributes:
        mean: mean over seeds.
        low, high: limits of the interval; infinite where one seed alone says nothing of seeds.
        over_seeds, over_images: half widths of the t interval and of the bootstrap; NaN without scores of images.
        num_seeds: number of paired seeds.
    """

    mean: float
    low: float
    high: float
    over_seeds: float
    over_images: float
    num_seeds: int


def difference_interval(
    baseline, method, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> DifferenceInterval:
    """Interval of the mean of `method - baseline`, runs paired by seed: the wider of two.

    - t interval over the S differences of paired seeds, S − 1 degrees of freedom;
    - percentile bootstrap over test images, of the difference averaged over seeds. Its half width is the larger of its
      two sides.

    Args:
        baseline, method: scores, (S, N) of the same N test images in the same order (1 for a correct prediction, 0 for
            a wrong one; or average precisions of queries), row i of both from the same seed; or (S,) scores of whole
            runs, which give the t interval alone.
        confidence: in (0, 1).
        num_resamples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        InputError: other shapes, or scores that are not finite.
    """
    baseline, method = (np.asarray(scores, dtype=np.float64) for scores in (baseline, method))
    if baseline.shape != method.shape or baseline.ndim not in (1, 2) or not baseline.size:
        raise InputError(
            "difference_interval: expected scores of both methods as (seeds,) or (seeds, images), of one shape; got "
            f"{baseline.shape} and {method.shape}"
        )
    if not (np.isfinite(baseline).all() and np.isfinite(method).all()):
        raise InputError("difference_interval: expected finite scores, got NaN or infinite ones")
    if not 0.0 < confidence < 1.0:
        raise InputError(f"difference_interval: expected a confidence between 0 and 1, got {confidence}")
    differences = method - baseline
    by_seed = differences if differences.ndim == 1 else differences.mean(axis=1)
    num_seeds, mean = len(by_seed), float(by_seed.mean())
    over_seeds = np.inf
    if num_seeds > 1:
        over_seeds = float(stats.t.ppf(0.5 + confidence / 2, num_seeds - 1) * by_seed.std(ddof=1) / np.sqrt(num_seeds))
    over_images = np.nan
    if differences.ndim == 2:
        over_images = _bootstrap_half_width(differences.mean(axis=0), confidence, num_resamples, seed)
    half = float(np.fmax(over_seeds, over_images))
    return DifferenceInterval(mean, mean - half, mean + half, over_seeds, over_images, num_seeds)


def _bootstrap_half_width(by_image: np.ndarray, confidence: float, num_resamples: int, seed: int) -> float:
    """(N,) differences of images → the larger side of the percentile interval of their mean."""
    random, count = np.random.default_rng(seed), len(by_image)
    means = np.array([by_image[random.integers(0, count, count)].mean() for _ in range(num_resamples)])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(max(by_image.mean() - low, high - by_image.mean()))
