"""What a loaded model says of one image."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """The classes of an image.

    Args:
        path: the file as it was named; None for an image in memory.
        label: the most probable class; None if the image cannot be read.
        probability: of that class, 0..1.
        known: whether the image is of one of the classes; None as long as the model is not calibrated.
        top: the most probable classes with their probabilities, in descending order.
        error: why the image cannot be read; None if it was.
    """

    path: str | None
    label: str | None = None
    probability: float | None = None
    known: bool | None = None
    top: list[tuple[str, float]] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Embedding:
    """The feature of an image.

    Args:
        path: the file as it was named; None for an image in memory.
        feature: (D,) float32; None if the image cannot be read.
        error: why the image cannot be read; None if it was.
    """

    path: str | None
    feature: np.ndarray | None = None
    error: str | None = None
