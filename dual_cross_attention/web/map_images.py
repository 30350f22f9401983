"""Attention maps over their image, as JPEG images in data URLs: a page with them needs no further file.

Drawn with PIL. A figure of matplotlib refers to itself, so its pixels are kept until Python's garbage collector looks
at all objects: with 3 maps per image, memory grew by 1.2 MiB per upload.
"""

import base64
from io import BytesIO

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from dual_cross_attention.explanation.explanation import Explanation
from dual_cross_attention.explanation.figures import COLORS, LUMINANCE, OPACITY, OUTLINE, outline_lines

QUALITY = 88
"""Of JPEG."""
LINES = (("black", 5), (OUTLINE, 3))
"""Colors and widths in pixels of the outlines, the lower one first."""


def data_url(image: Image.Image) -> str:
    """An image in RGB as the address of itself."""
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_map(explanation: Explanation, values: np.ndarray, with_local: bool) -> Image.Image:
    """A map (h, w) over the image of an explanation, as `figures.overlay` draws it, in the size of the image.

    Args:
        with_local: outline the local tokens.
    """
    height, width = explanation.image.shape[:2]
    upsampled = Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    scaled = np.asarray(upsampled) - values.min()
    scaled /= max(float(np.ptp(values)), np.finfo(np.float32).tiny)
    colors = matplotlib.colormaps[COLORS](scaled)[..., :3]
    gray = (explanation.image @ LUMINANCE)[..., None]
    drawn = Image.fromarray(((1 - OPACITY) * gray + OPACITY * 255 * colors).round().astype(np.uint8))
    if with_local:
        draw = ImageDraw.Draw(drawn)
        for color, thickness in LINES:
            for line in outline_lines(explanation.local, explanation.image.shape):
                draw.line(line, color, thickness)
    return drawn
