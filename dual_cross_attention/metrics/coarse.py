"""Accuracy of fine-grained predictions by coarse class, and mistakes inside and across coarse classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class CoarseClassAccuracy(NamedTuple):
    """Accuracy of the test images of one coarse class, in percent.

    Args:
        name: coarse class.
        classes: number of its classes with test images.
        images: number of its test images.
        top1: share of images with the right class.
        coarse_top1: share of images with a predicted class of the right coarse class.
    """

    name: str
    classes: int
    images: int
    top1: float
    coarse_top1: float


class CoarseAccuracy(NamedTuple):
    """Accuracy over all test images, and by coarse class.

    Args:
        top1: share of images with a predicted class of the right coarse class, in percent.
        mistakes_inside: images whose class is wrong and coarse class right.
        mistakes_across: images whose coarse class is wrong.
        by_class: coarse classes with test images, by name.
    """

    top1: float
    mistakes_inside: int
    mistakes_across: int
    by_class: list[CoarseClassAccuracy]


def coarse_accuracy(labels: np.ndarray, predicted: np.ndarray, coarse_classes: Sequence[str]) -> CoarseAccuracy:
    """Compares classes and their coarse classes.

    Args:
        labels, predicted: (n,) classes of n > 0 images.
        coarse_classes: coarse class of each class, by label.

    Raises:
        ValueError: no images, or a different number of labels and predictions.
    """
    if not len(labels) or labels.shape != predicted.shape:
        raise ValueError(f"expected as many labels as predictions, at least one, got {labels.shape}, {predicted.shape}")
    names, coarse = np.unique(np.asarray(coarse_classes, dtype=object), return_inverse=True)
    is_right, is_coarse_right = labels == predicted, coarse[labels] == coarse[predicted]
    by_class = []
    for place, name in enumerate(names):
        chosen = coarse[labels] == place
        if chosen.any():
            shares = (100 * float(each[chosen].mean()) for each in (is_right, is_coarse_right))
            by_class.append(CoarseClassAccuracy(name, len(np.unique(labels[chosen])), int(chosen.sum()), *shares))
    return CoarseAccuracy(
        100 * float(is_coarse_right.mean()),
        int((is_coarse_right & ~is_right).sum()),
        int((~is_coarse_right).sum()),
        by_class,
    )
