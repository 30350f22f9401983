"""Test images as small JPEG data URIs, alone and under the model's attention."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image
from rich.console import Console

from dual_cross_attention.explanation.explainer import Explainer
from dual_cross_attention.explanation.figures import COLORS, LUMINANCE, OPACITY
from dual_cross_attention.explanation.shown_image import ShownPreprocessing
from dual_cross_attention.inference.inputs import Source
from dual_cross_attention.inference.reading import read_batches
from dual_cross_attention.progress import track
from dual_cross_attention.report.opened_run import OpenedRun

SIDE = 176
"""Pixels of the longer side."""
QUALITY = 80
BATCH_SIZE = 16


@dataclass(frozen=True)
class Thumbnail:
    """A test image as the model sees it.

    Args:
        image, attention: data URIs; `attention` is the default map of the model over the image in gray. None if the
            image cannot be read any more.
        width, height: in pixels.
    """

    image: str | None
    attention: str | None
    width: int = SIDE
    height: int = SIDE


def make_thumbnails(opened: OpenedRun, positions: Iterable[int], console: Console) -> dict[int, Thumbnail]:
    """Thumbnails of test images by position; each image is read and explained once."""
    wanted = sorted({int(each) for each in positions})
    sources = (Source(opened.name(position), opened.images[position]) for position in wanted)
    loaded = opened.loaded
    batches = read_batches(sources, ShownPreprocessing(loaded.transform), BATCH_SIZE, opened.num_workers, loaded.device)
    explanations = Explainer.of_loaded(loaded, 1, gradient=False).explain(batches)
    found = {}
    for position, each in zip(wanted, track(explanations, "draw", len(wanted), console), strict=True):
        if each.error:
            found[position] = Thumbnail(None, None)
            continue
        shown = Image.fromarray(each.image)
        shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        covered = overlay(np.asarray(shown), each.map())
        found[position] = Thumbnail(data_uri(shown), data_uri(Image.fromarray(covered)), *shown.size)
    return found


def overlay(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A map (h, w) over the gray levels of an image (H, W, 3) uint8; colors run from its minimum to its maximum."""
    spread = float(np.ptp(values)) or 1.0
    scaled = Image.fromarray(((values - values.min()) / spread).astype(np.float32))
    smooth = np.asarray(scaled.resize(image.shape[1::-1], Image.Resampling.BILINEAR))
    colors = 255 * matplotlib.colormaps[COLORS](smooth)[..., :3]
    gray = (image @ LUMINANCE)[..., None]
    return (OPACITY * colors + (1 - OPACITY) * gray).round().astype(np.uint8)


def data_uri(image: Image.Image) -> str:
    """An RGB image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
