"""The figure of two images with lines between matching patches."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from dual_cross_attention.explanation.explanation import Explanation
from dual_cross_attention.explanation.figures import COLORS, TEXT, WIDTH, shortened, show_image
from dual_cross_attention.explanation.pairs import PairExplanation
from dual_cross_attention.text import escape

METHOD_TITLES = {
    "pwca": "attention to the other image in PWCA's joint softmax, last layer, mean of both directions",
    "cosine": "cosine similarity of patch tokens of the last layer × rollout of both patches",
}


def draw_pair(pair: PairExplanation) -> Figure:
    """Both images side by side; a line joins the patches of each match, and its color is the score."""
    height, width = pair.first.image.shape[:2]
    panel = min(WIDTH / 2.6 * height / width, 6.0)
    with matplotlib.rc_context({"text.parse_math": False, "font.size": TEXT, "axes.titlesize": TEXT}):
        figure = Figure((WIDTH, panel + 2.1), dpi=150, layout="constrained")
        figure.suptitle(_title(pair), fontsize=TEXT, linespacing=1.4)
        left, right = figure.subplots(1, 2)
        for axes, each, name in ((left, pair.first, "first image"), (right, pair.second, "second image")):
            show_image(axes, each.image, name if each.path is None else shortened(escape(each.path), 48))
        values = [match.score for match in pair.matches]
        color = ScalarMappable(Normalize(min(values), max(values)), COLORS)
        for match in reversed(pair.matches):  # the best one on top
            _draw_match(figure, left, right, pair, match, color.to_rgba(match.score))
        bar = figure.colorbar(color, ax=[left, right], location="bottom", fraction=0.04, pad=0.02, aspect=40)
        bar.set_label(f"score of a match: {METHOD_TITLES[pair.method]}")
    return figure


def _title(pair: PairExplanation) -> str:
    lines = [f"{pair.first.model_name}: the {len(pair.matches)} best matches of patches"]
    kind = "Euclidean" if pair.distance_name == "euclidean" else "cosine"
    said = f"{kind} distance of the features {pair.distance:.3f}"
    if pair.same is None:
        said += ", no threshold: not calibrated"
    else:
        enrolled = "1 identity" if pair.gallery_size == 1 else f"{pair.gallery_size:,} identities"
        said += f", threshold {pair.threshold:.3f} (gallery of {enrolled}), "
        said += f"P(same identity) {100 * pair.same:.0f} %"
    return "\n".join([*lines, said, "The distance is of two separate passes, not of the matches."])


def _draw_match(figure: Figure, left: Axes, right: Axes, pair: PairExplanation, match, color) -> None:
    ends = []
    for axes, each, place in ((left, pair.first, match.first), (right, pair.second, match.second)):
        high, wide = _patch_size(each)
        corner = place[1] * wide - 0.5, place[0] * high - 0.5
        for width, edge in ((3.0, "black"), (1.5, color)):
            axes.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor=edge, linewidth=width))
        ends.append((corner[0] + wide / 2, corner[1] + high / 2))
    for width, edge in ((3.0, "black"), (1.6, color)):
        figure.add_artist(
            ConnectionPatch(ends[0], ends[1], "data", "data", axesA=left, axesB=right, color=edge, linewidth=width)
        )


def _patch_size(explanation: Explanation) -> np.ndarray:
    """Height and width in pixels of the shown image."""
    return np.array(explanation.image.shape[:2]) / explanation.rollout.shape
