"""Maps over their image: as figures draw them, and without garbage."""

import gc
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure

from dual_cross_attention.explanation.explanation import Explanation
from dual_cross_attention.explanation.figures import outline, overlay
from dual_cross_attention.web.map_images import draw_map


@pytest.fixture
def explanation() -> Explanation:
    random = np.random.default_rng(0)
    image = np.repeat(np.repeat(random.integers(0, 256, (6, 4, 3), dtype=np.uint8), 32, 0), 32, 1)
    rollout = random.random((6, 4), dtype=np.float32)
    return Explanation("a.png", rollout=rollout, local=rollout > 0.7, image=image)


def drawn_by_matplotlib(explanation: Explanation, with_local: bool) -> np.ndarray:
    height, width = explanation.image.shape[:2]
    figure = Figure((width / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    overlay(axes, explanation.image, explanation.rollout)
    if with_local:
        outline(axes, explanation.local, explanation.image.shape)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    buffer = BytesIO()
    figure.savefig(buffer, format="rgba", dpi=100)
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[..., :3].astype(float)


@pytest.mark.parametrize("with_local", [False, True])
def test_a_map_is_drawn_as_in_figures(explanation, with_local):
    drawn = np.asarray(draw_map(explanation, explanation.rollout, with_local)).astype(float)
    assert np.abs(drawn - drawn_by_matplotlib(explanation, with_local)).mean() < 4


def test_a_uniform_map_is_drawn(explanation):
    drawn = np.asarray(draw_map(explanation, np.full((6, 4), 0.25, dtype=np.float32), False))
    assert drawn.shape == explanation.image.shape


def test_pixels_are_freed_without_the_garbage_collector(explanation):
    """Each figure of matplotlib would leave thousands of objects that refer to each other."""
    draw_map(explanation, explanation.rollout, True)
    gc.collect()
    gc.disable()
    try:
        draw_map(explanation, explanation.rollout, True)
        assert gc.collect() < 50
    finally:
        gc.enable()
