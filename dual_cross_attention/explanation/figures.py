"""Figures of explanations, drawn with matplotlib.

Figures are built without pyplot, so they hold no global state and are freed with their last reference. Colors are those
of cividis, which is perceptually uniform and safe for color-blind readers. A figure is 8 inches wide with letters of at
least 9 points: 12 pixels of a figure 800 pixels wide.
"""

import re
import textwrap
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage

from dual_cross_attention.errors import InputError
from dual_cross_attention.explanation.explanation import Explanation
from dual_cross_attention.explanation.maps import MAP_TITLES
from dual_cross_attention.inference.calibration import TOGETHER
from dual_cross_attention.text import escape

COLORS = "cividis"
OPACITY = 0.55
"""Of a map over its image."""
LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Of red, green and blue, ITU-R BT.601. Maps are drawn over gray levels, so that every color is of the map."""
OUTLINE = "white"
WIDTH = 8.0
TEXT = 9.0
"""Inches, points."""
ANSWERS = {TOGETHER: "SA and GLCA together", "sa": "SA", "glca": "GLCA"}
LOCAL_TITLES = {
    "random": "local tokens ({} %, random)",
    "penultimate": "local tokens (top {} % of\nsecond to last layer)",
}
"""By how they were chosen, if not by rollout."""
LONGEST_NAME = 34
LAYERS_A_ROW = 6


def draw_explanations(explanations: Sequence[Explanation], show_layers: bool = False) -> Figure:
    """One image as one or more models see it, a row each.

    Args:
        explanations: of the same image.
        show_layers: CLS's attention in each layer under each row.

    Raises:
        InputError: an image that could not be read, or was not kept.
    """
    for each in explanations:
        if each.error:
            raise InputError(f"figure: the image cannot be read: {each.error}")
        if each.image is None:
            raise InputError("figure: the image was not kept: explain(..., keep_image=True)")
    parts: list[tuple[float, Callable[[SubFigure], None]]] = []
    for each in explanations:
        parts += _parts_of(each, show_layers)
    # A path may hold a dollar sign, which is no formula.
    with matplotlib.rc_context({"text.parse_math": False, "font.size": TEXT, "axes.titlesize": TEXT}):
        figure = Figure((WIDTH, sum(height for height, _ in parts)), dpi=150, layout="constrained")
        path = explanations[0].path
        title = [] if path is None else [shortened(escape(path), 90)]
        if note := _crop_note(explanations[0]):
            title.append(note)
        figure.suptitle("\n".join(title), fontsize=TEXT)
        places = figure.subfigures(len(parts), 1, height_ratios=[height for height, _ in parts], squeeze=False)[:, 0]
        for place, (_, draw) in zip(places, parts, strict=True):
            draw(place)
    return figure


def _parts_of(explanation: Explanation, show_layers: bool) -> list[tuple[float, Callable[[SubFigure], None]]]:
    """Heights in inches, and what draws them."""
    height, width = explanation.image.shape[:2]
    columns = 1 + len(_maps_of(explanation))
    is_beside = columns < 4 and bool(explanation.predictions)
    panel = min(WIDTH / max(columns, 4) * height / width, 4.0)
    parts = [(panel + 0.9, lambda place: _draw_maps(place, explanation, is_beside))]
    if explanation.predictions and not is_beside:
        lines = max(len(each.top) for each in explanation.predictions.values())
        parts.append((0.45 + 0.19 * lines, lambda place: _draw_predictions(place, explanation)))
    if show_layers:
        rows = -(-len(explanation.layers) // LAYERS_A_ROW)
        side = min(WIDTH / LAYERS_A_ROW * height / width, 3.0)
        parts.append((rows * (side + 0.3) + 0.4, lambda place: _draw_layers(place, explanation, rows)))
    return parts


def _maps_of(explanation: Explanation) -> dict[str, np.ndarray]:
    """The maps that a figure shows, by their names for people."""
    names = ["rollout", *([] if explanation.glca is None else ["glca", "product"])]
    names += [] if explanation.gradient is None else ["gradient"]
    return {name: explanation.map(name) for name in names}


def _draw_maps(place: SubFigure, explanation: Explanation, is_beside: bool) -> None:
    """The image and its maps; with `is_beside`, the predictions to the right of them."""
    if explanation.model_name:
        place.suptitle(shortened(escape(explanation.model_name), 60), fontsize=TEXT, x=0.01, ha="left", weight="bold")
    maps = _maps_of(explanation)
    if is_beside:
        place, beside = place.subfigures(1, 2, width_ratios=[1 + len(maps), 3 - len(maps)])
        _draw_predictions(beside, explanation)
    first, *axes = place.subplots(1, 1 + len(maps))
    show_image(first, explanation.image, "image, center crop" if explanation.crop_words else "image")
    for each, (name, values) in zip(axes, maps.items(), strict=True):
        title = MAP_TITLES[name]
        if name == "rollout" and explanation.local is not None:
            title = f"rollout (SA), outlined:\n{_local_title(explanation)}"
        unit = "relevance per patch" if name == "gradient" else "% per patch"
        show_map(place, each, explanation.image, values if name == "gradient" else 100 * values, title, unit)
        if name == "rollout" and explanation.local is not None:
            outline(each, explanation.local, explanation.image.shape)


def _local_title(explanation: Explanation) -> str:
    chosen = LOCAL_TITLES.get(explanation.local_queries, "local tokens (top {} % of it)")
    return chosen.format(f"{100 * explanation.local.mean():.0f}")


def _crop_note(explanation: Explanation) -> str:
    seen = explanation.crop_words
    return f"Shown is what the model sees: {seen}." if seen else ""


def show_image(axes: Axes, image: np.ndarray, title: str) -> None:
    """An image (H, W, 3) without axes."""
    axes.imshow(image, interpolation="lanczos")
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])


def show_map(place: SubFigure, axes: Axes, image: np.ndarray, values: np.ndarray, title: str, unit: str) -> None:
    """A map (h, w) over an image, with a scale bar."""
    axes.set_title(title)
    bar = place.colorbar(overlay(axes, image, values), ax=axes, location="bottom", fraction=0.06, pad=0.02)
    bar.solids.set_alpha(1.0)
    bar.set_label(unit)


def overlay(axes: Axes, image: np.ndarray, values: np.ndarray) -> AxesImage:
    """A map (h, w), upsampled bilinearly, over the gray levels of an image (H, W, 3). Colors run from its minimum to
    its maximum."""
    axes.imshow(image @ LUMINANCE, cmap="gray", vmin=0, vmax=255, interpolation="lanczos")
    axes.set_xticks([])
    axes.set_yticks([])
    height, width = image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    return axes.imshow(values, cmap=COLORS, alpha=OPACITY, extent=extent, interpolation="bilinear")


def outline(axes: Axes, mask: np.ndarray, shape: tuple[int, ...]) -> None:
    """Lines around the patches of a mask (h, w), over an image of shape (H, W, …)."""
    lines = [[(x - 0.5, y - 0.5) for x, y in line] for line in outline_lines(mask, shape)]
    axes.add_collection(LineCollection(lines, colors="black", linewidths=3.5, capstyle="projecting"))
    axes.add_collection(LineCollection(lines, colors=OUTLINE, linewidths=1.8, capstyle="projecting"))


def outline_lines(mask: np.ndarray, shape: tuple[int, ...]) -> list[list[tuple[float, float]]]:
    """Lines around the patches of a mask (h, w): the ends (x, y) of each, in pixels of an image of shape (H, W, …)
    from its upper left corner."""
    rows, columns = mask.shape
    high, wide = shape[0] / rows, shape[1] / columns
    padded = np.pad(mask, 1)
    return [
        # between each patch and the one above it
        *(
            [(x * wide, y * high), ((x + 1) * wide, y * high)]
            for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
        ),
        # and the one to its left
        *(
            [(x * wide, y * high), (x * wide, (y + 1) * high)]
            for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
        ),
    ]


def _draw_predictions(place: SubFigure, explanation: Explanation) -> None:
    kind = "calibrated probability" if explanation.is_calibrated else "probability, not calibrated"
    axes = place.subplots(1, len(explanation.predictions), squeeze=False)[0]
    for each, (answer, prediction) in zip(axes, explanation.predictions.items(), strict=True):
        each.axis("off")
        known = "" if prediction.known in (None, True) else ": unknown"
        title = f"{ANSWERS[answer]} ({kind}){known}" if len(axes) == 1 else f"{ANSWERS[answer]}{known}"
        each.set_title(title, loc="left", weight="bold")
        lines = [
            f"{100 * value:5.1f} %  {shortened(display_name(label), LONGEST_NAME)}" for label, value in prediction.top
        ]
        each.text(0, 1, "\n".join(lines), va="top", transform=each.transAxes, linespacing=1.3)
    if len(axes) > 1:
        place.supxlabel(kind, fontsize=TEXT, x=0.01, ha="left")


def _draw_layers(place: SubFigure, explanation: Explanation, rows: int) -> None:
    place.suptitle("attention of the class token in each layer (mean over heads, not accumulated)", fontsize=TEXT)
    axes = place.subplots(rows, LAYERS_A_ROW, squeeze=False).ravel()
    for unused in axes[len(explanation.layers) :]:
        unused.axis("off")
    for number, (each, values) in enumerate(zip(axes, explanation.layers, strict=False), start=1):
        each.set_title(f"layer {number}")
        overlay(each, explanation.image, values)


def display_name(label: str) -> str:
    """A class name for a figure: without a leading number ("002.Ani"; "1.5" has none), with spaces for underscores."""
    return escape(re.sub(r"^\d+\.(?=\D)", "", label).replace("_", " "))


def shortened(text: str, length: int) -> str:
    """The start of a name, or the end of a path."""
    if len(text) <= length:
        return text
    return f"…{text[1 - length :]}" if "/" in text else textwrap.shorten(text, length, placeholder="…")
