"""Grouping new individuals, against average linkage in loops."""

import itertools

import numpy as np
import pytest

from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery import cluster
from dual_cross_attention.gallery.cluster import group


def literal(distances: np.ndarray, threshold: float) -> list[int]:
    """Joins the two groups of the smallest mean distance until that is above the threshold."""
    groups = [[item] for item in range(len(distances))]
    while len(groups) > 1:
        means = {
            (a, b): np.mean([distances[i, j] for i in groups[a] for j in groups[b]])
            for a, b in itertools.combinations(range(len(groups)), 2)
        }
        a, b = min(means, key=means.get)
        if means[a, b] > threshold:
            break
        groups[a] += groups.pop(b)
    groups.sort(key=min)
    return [next(number for number, each in enumerate(groups) if item in each) for item in range(len(distances))]


@pytest.mark.parametrize("number", [0, 1, 2, 15])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.7, 2.0])
def test_average_linkage(number, threshold):
    points = np.random.default_rng(number).random((number, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    assert group(distances, threshold) == literal(distances, threshold)


def test_too_many_are_refused(monkeypatch):
    monkeypatch.setattr(cluster, "MOST", 3)
    with pytest.raises(InputError, match="at most 3"):
        group(np.zeros((4, 4)), 1.0)
