"""Attention maps over their image, as JPEG images in data URLs: a page with them needs no further file."""

import base64
from io import BytesIO

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from dual_cross_attention.explanation.explanation import Explanation
from dual_cross_attention.explanation.figures import outline, overlay

DPI = 100
QUALITY = 88
"""Of JPEG."""


def data_url(image: Image.Image) -> str:
    """An image in RGB as the address of itself."""
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_map(explanation: Explanation, values: np.ndarray, with_local: bool) -> Image.Image:
    """A map (h, w) over the image of an explanation, as `dcal explain` draws it, in the size of the image.

    Args:
        with_local: outline the local tokens.
    """
    height, width = explanation.image.shape[:2]
    figure = Figure((width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    overlay(axes, explanation.image, values)
    if with_local:
        outline(axes, explanation.local, explanation.image.shape)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    buffer = BytesIO()
    figure.savefig(buffer, format="rgba", dpi=DPI)
    pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)
    return Image.fromarray(pixels).convert("RGB")
