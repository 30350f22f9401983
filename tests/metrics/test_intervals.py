"""The interval of a difference: against its formulas, written out, and its coverage on simulated trainings."""

import math

import numpy as np
import pytest
from scipy import stats

from dual_cross_attention.errors import InputError
from dual_cross_attention.metrics.intervals import difference_interval


def test_over_seeds_it_is_the_paired_t_interval():
    baseline, method = [70.0, 72.5, 71.0, 69.5], [71.5, 72.0, 73.0, 71.0]
    interval = difference_interval(baseline, method)
    differences = [b - a for a, b in zip(baseline, method, strict=True)]
    mean = sum(differences) / 4
    deviation = math.sqrt(sum((each - mean) ** 2 for each in differences) / 3)
    half = 3.182446305 * deviation / math.sqrt(4)  # t of 3 degrees of freedom at 97.5 %
    assert (interval.mean, interval.num_seeds) == (pytest.approx(mean), 4)
    assert (interval.low, interval.high) == (pytest.approx(mean - half), pytest.approx(mean + half))
    assert math.isnan(interval.over_images)
    assert interval.low == pytest.approx(stats.ttest_rel(method, baseline).confidence_interval().low)


def test_over_images_it_is_the_bootstrap_of_the_mean_over_seeds():
    random = np.random.default_rng(0)
    baseline, method = (random.random((3, 2000)) < share for share in (0.7, 0.75))
    interval = difference_interval(baseline, method)
    by_image = (method.astype(float) - baseline).mean(0)
    assert interval.over_images == pytest.approx(1.96 * by_image.std() / math.sqrt(2000), rel=0.08)
    assert interval.high - interval.mean == pytest.approx(max(interval.over_seeds, interval.over_images))
    assert interval == difference_interval(baseline, method)  # the same every time


def test_one_seed_says_nothing_of_seeds():
    interval = difference_interval([[0, 1, 1, 0]], [[1, 1, 1, 0]])
    assert (interval.mean, interval.low, interval.high) == (0.25, -math.inf, math.inf)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("seed_effect", [0.0, 0.15])
def test_coverage_on_simulated_trainings(seeds, seed_effect):
    """Images differ in difficulty and in what the method gains; seeds shift all images and change single answers."""
    random, images, trials = np.random.default_rng(seeds), 1000, 200

    def answers(difficulty, shape):
        return difficulty + random.normal(0, seed_effect, (shape[0], 1)) + random.normal(0, 1, shape) > 0

    def difficulties(number):
        difficulty = random.normal(0.8, 1.5, number)
        return difficulty, difficulty + random.normal(0.15, 0.3, number)

    without, with_method = difficulties(1_000_000)
    expected = np.mean(
        stats.norm.cdf(with_method / math.hypot(1, seed_effect)) - stats.norm.cdf(without / math.hypot(1, seed_effect))
    )
    covered = 0
    for trial in range(trials):
        without, with_method = difficulties(images)
        scores = [answers(each, (seeds, images)) for each in (without, with_method)]
        interval = difference_interval(*scores, num_resamples=200, seed=trial)
        covered += interval.low <= expected <= interval.high
    # 93 % is the goal; at 200 trials the deviation of a share is 1.8 points.
    assert covered / trials >= 0.93 - 0.018


@pytest.mark.parametrize(
    ("baseline", "method", "key"),
    [
        ([1.0, 2.0], [1.0], "shape"),
        ([], [], "shape"),
        ([[[1.0]]], [[[1.0]]], "shape"),
        ([1.0, math.nan], [1.0, 2.0], "finite"),
    ],
)
def test_scores_that_cannot_be_compared(baseline, method, key):
    with pytest.raises(InputError, match=key):
        difference_interval(baseline, method)


def test_a_confidence_beyond_one():
    with pytest.raises(InputError, match="confidence"):
        difference_interval([1.0, 2.0], [1.0, 2.0], confidence=95)
