"""Faithfulness of the default map on a fixed sample of the test images."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from torch import Tensor

from dual_cross_attention.data.images import UnreadableImage
from dual_cross_attention.explanation.faithfulness import measure_faithfulness
from dual_cross_attention.explanation.maps import MAP_TITLES
from dual_cross_attention.progress import track
from dual_cross_attention.report.opened_run import OpenedRun

SAMPLE = 100
"""Test images that faithfulness is measured on."""


class FaithfulnessRow(NamedTuple):
    """Gains of a map over the random map of the same model and image, in units of the whole image's probability.

    Args:
        title: name of the map.
        images: number of images.
        deletion, insertion: mean gain, and half of its 95 % interval over images.
    """

    title: str
    images: int
    deletion: tuple[float, float]
    insertion: tuple[float, float]


def sample_positions(total: int, number: int = SAMPLE) -> list[int]:
    """Evenly spaced positions in a list of `total` images, the same at every call; all if there are not more."""
    return np.unique(np.linspace(0, total - 1, min(number, total)).round().astype(int)).tolist()


def measure_default_map(opened: OpenedRun, readable: np.ndarray, console: Console) -> FaithfulnessRow:
    """Deletion and insertion gains of the map that the report shows, on a sample of the test images.

    Args:
        readable: positions of the test images that can be read.
    """
    name = opened.default_map
    positions = readable[sample_positions(len(readable))].tolist()

    def images() -> Iterator[Image.Image]:
        for position in track(positions, "faithfulness", len(positions), console):
            try:
                yield opened.loaded.transform.read(opened.images[position])
            except UnreadableImage:  # since the evaluation
                continue

    found = measure_faithfulness(opened.loaded, images(), [name])[name]

    return FaithfulnessRow(MAP_TITLES[name], len(found.deletion), interval(found.deletion), interval(found.insertion))


def interval(values: Tensor) -> tuple[float, float]:
    """Mean, and half of its 95 % interval over images."""
    spread = values.std().item() if len(values) > 1 else 0.0
    return values.mean().item(), 1.96 * spread / len(values) ** 0.5
