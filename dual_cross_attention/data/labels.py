"""Distinct labels of many images."""

from collections.abc import Sequence

import numpy as np


def distinct(labels: Sequence[int]) -> np.ndarray:
    """Returns the distinct labels, ascending, int64; calls `labels.distinct()` where the sequence has that method."""
    known = getattr(labels, "distinct", None)
    return known() if known else np.unique(np.asarray(labels, dtype=np.int64))
