"""Groups images of unknown individuals: average linkage of their distances, cut at a threshold."""

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from dual_cross_attention.errors import InputError

MOST = 20_000
"""Items to group: their distances take 8 bytes a pair, 1.6 GB."""


def group(distances: np.ndarray, threshold: float) -> list[int]:
    """Groups items so that the mean distance between two joined groups is at most the threshold.

    Average linkage (UPGMA, Sokal and Michener 1958) of the items.

    Args:
        distances: (N, N), symmetric, zero on the diagonal.
        threshold: largest mean distance at which two groups are joined.

    Returns:
        N numbers of groups, from 0 on in the order of their first items.

    Raises:
        InputError: more than `MOST` items.
    """
    if len(distances) > MOST:
        raise InputError(f"--cluster: expected at most {MOST:,} new images or tracks to group, got {len(distances):,}")
    if len(distances) < 2:
        return [0] * len(distances)
    tree = linkage(squareform(distances, checks=False), method="average")
    return in_order(fcluster(tree, threshold, criterion="distance").tolist())


def in_order(groups: Sequence[int]) -> list[int]:
    """The same groups, numbered from 0 on in the order of their first items."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(each, len(numbers)) for each in groups]
