"""Temperatures, calibration errors and scores of confidence, derived again in NumPy from their definitions."""

import math

import numpy as np
import pytest
import torch

from dual_cross_attention.metrics.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from dual_cross_attention.metrics.confidence import confidence, log_mean_probability, threshold_that_keeps
from tests.helpers import softmax

CLASSES = 12


def drawn(probabilities: np.ndarray, seed: int = 1) -> torch.Tensor:
    """A label of each row, by its probabilities."""
    below = np.random.default_rng(seed).random((len(probabilities), 1)) > probabilities.cumsum(axis=1)
    return torch.from_numpy(below.sum(axis=1).clip(max=probabilities.shape[1] - 1))


@pytest.fixture
def logits():
    """20,000 by branch."""
    random = np.random.default_rng(0)
    sa = random.normal(0, 4, (20_000, CLASSES))
    return {"sa": sa, "glca": sa + random.normal(0, 2, sa.shape)}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_synthetic_logits_is_recovered(logits, temperature):
    labels = drawn(softmax(logits["sa"] / temperature))
    assert fit_temperature(torch.from_numpy(logits["sa"]).float(), labels) == pytest.approx(temperature, rel=0.02)


@pytest.mark.parametrize("temperature", [0.5, 2.5])
def test_the_temperature_of_the_mean_probability_is_recovered(logits, temperature):
    powers = ((softmax(logits["sa"]) + softmax(logits["glca"])) / 2) ** (1 / temperature)
    labels = drawn(powers / powers.sum(axis=1, keepdims=True))
    together = log_mean_probability({name: torch.from_numpy(each) for name, each in logits.items()})
    assert fit_temperature(together, labels) == pytest.approx(temperature, rel=0.02)


def test_images_that_do_not_determine_the_temperature_are_noticed():
    logits = torch.eye(4)
    assert fit_temperature(logits, torch.arange(4)) is None  # all right
    assert fit_temperature(logits, torch.tensor([1, 2, 3, 0])) is None  # all wrong
    # Two of three right: probability 2/3 of the larger logit, so 1 / T = log 2.
    logits, labels = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([0, 0, 1])
    assert fit_temperature(logits, labels) == pytest.approx(1 / math.log(2), rel=1e-4)


def test_errors_are_those_of_their_definitions(logits):
    scores, labels = logits["sa"][:3000], drawn(softmax(logits["sa"][:3000] / 2))
    probabilities, truth = softmax(scores), labels.numpy()
    expected = 0.0
    for i in range(15):
        top = probabilities.max(axis=1)
        inside = (top > i / 15) & (top <= (i + 1) / 15)
        if inside.any():
            right = (probabilities.argmax(axis=1) == truth)[inside].mean()
            expected += inside.mean() * abs(right - top[inside].mean())
    assert expected > 0.05
    assert expected_calibration_error(torch.from_numpy(scores), labels) == pytest.approx(expected, abs=1e-6)
    likelihood = -np.log(probabilities[np.arange(len(truth)), truth]).mean()
    assert negative_log_likelihood(torch.from_numpy(scores), labels) == pytest.approx(likelihood)


def test_scores_are_those_of_their_definitions(logits):
    few = {name: each[:50] for name, each in logits.items()}
    temperatures, together = {"sa": 1.5, "glca": 0.7}, 2.0
    p, q = softmax(few["sa"] / 1.5), softmax(few["glca"] / 0.7)
    powers = ((softmax(few["sa"]) + softmax(few["glca"])) / 2) ** (1 / together)
    free = [t * np.log(np.exp(few[name] / t).sum(axis=1)) for name, t in temperatures.items()]
    expected = {
        "probability": (powers / powers.sum(axis=1, keepdims=True)).max(axis=1),
        "energy": sum(free) / 2,
        "agreement": np.sqrt(p * q).sum(axis=1),
    }
    tensors = {name: torch.from_numpy(each) for name, each in few.items()}
    for score, values in expected.items():
        assert np.allclose(confidence(score, tensors, temperatures, together), values), score
    alone = {"sa": tensors["sa"]}
    assert np.allclose(confidence("probability", alone, {"sa": 1.5}, 1.5), p.max(axis=1))
    assert np.allclose(confidence("energy", alone, {"sa": 1.5}, 1.5), free[0])


def test_extreme_logits_stay_finite():
    logits = {"sa": torch.tensor([[3e4, -3e4, 0.0]]), "glca": torch.tensor([[-3e4, 3e4, 0.0]])}
    assert log_mean_probability(logits).isfinite().all()
    temperatures = {"sa": 0.02, "glca": 50.0}
    for score, value in {"probability": 0.5, "energy": 3e4, "agreement": 0.0}.items():
        assert confidence(score, logits, temperatures, 1.0).item() == pytest.approx(value)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("number", [1, 7, 100, 1001])
def test_the_threshold_keeps_the_share(share, number):
    scores = torch.from_numpy(np.random.default_rng(number).normal(0, 1, number))
    threshold = threshold_that_keeps(scores, share)
    kept = sum(score >= threshold for score in scores.tolist())
    assert kept == max(1, math.ceil(share * number - 1e-9))
    assert kept == number or scores.sub(threshold).abs().min() > 0  # no score is where rounding would decide
