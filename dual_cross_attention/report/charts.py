"""Charts as inline SVG, drawn with matplotlib.

Text and axes have the color of the surrounding text, so that a chart is legible on a light and on a dark page. Lines
differ by color, by line style and, where they are few, by marker.
"""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import count
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dual_cross_attention.report.reliability import Reliability

INK = "#010203"
"""Stands for the color of the page's text, which replaces it in the SVG."""
COLORS = ("#2f7fc1", "#d9772b", "#2a9d6f", "#b05fb8", "#8a8a8a", "#b8973a")
"""Legible on white and on near black, and told apart by color-blind readers together with the line styles."""
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
SIZE = (4.4, 2.9)
"""Inches: 422 pixels wide, which a phone shows at 85 %."""


FEW_POINTS = 12
"""Below this, each value of a curve has a marker."""


LONG_LABEL = 18
"""Characters; two longer labels do not stand in one line of a legend."""


class Chart(NamedTuple):
    """A chart for the template.

    Args:
        title: of the chart.
        svg: the drawing, with its alternative text.
    """

    title: str
    svg: Markup


class Line(NamedTuple):
    """A curve.

    Args:
        label: in the legend.
        x, y: of one length.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]


_NUMBERS = count(1)


def lines_chart(title: str, lines: Sequence[Line], x_label: str, y_label: str) -> Chart:
    """Curves over a common axis; the alternative text has the first and the last value of each."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(x_label, y_label)
        for number, line in enumerate(lines):
            of_line = {"color": COLORS[number % len(COLORS)], "linestyle": LINES[number % len(LINES)]}
            marker = "o" if len(line.x) < FEW_POINTS else ""
            axes.plot(line.x, line.y, marker=marker, markersize=3.5, label=line.label, **of_line)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(lines) > 1:
            _legend(figure, [line.label for line in lines])
        said = "; ".join(f"{line.label}: {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in lines if len(line.y))
        return Chart(title, _svg(figure, f"{title}, by {x_label}. {said}."))


def reliability_chart(title: str, bins: Mapping[str, Reliability]) -> Chart:
    """Accuracy by probability, a line of points for each kind of probability; on the diagonal, both are equal."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("probability of the predicted class", "accuracy", (4.4, 3.6))
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="accuracy = probability")
        for number, (label, each) in enumerate(bins.items()):
            there = each.counts > 0
            axes.plot(
                each.confidence[there],
                each.accuracy[there],
                marker="os^"[number % 3],
                markersize=4.5,
                color=COLORS[number],
                linestyle=LINES[number],
                label=f"{label}: ECE {100 * each.ece:.2f} %",
            )
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        _legend(figure, list(bins))
        said = "; ".join(f"{label}: ECE {100 * each.ece:.2f} %" for label, each in bins.items())
        return Chart(title, _svg(figure, f"{title}: accuracy in 15 bins of the probability. {said}."))


def histogram_chart(title: str, counts: np.ndarray, x_label: str, y_label: str) -> Chart:
    """Bars of numbers in bins of equal width over 0..1."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(x_label, y_label, (4.4, 2.4))
        width = 1 / len(counts)
        axes.bar(np.arange(len(counts)) * width, counts, width * 0.92, align="edge", color=COLORS[0])
        largest = int(np.argmax(counts))
        said = f"most, {counts[largest]:,}, from {largest * width:.2f} to {(largest + 1) * width:.2f}"
        return Chart(title, _svg(figure, f"{title}: {y_label} by {x_label}; {said}."))


def _axes(x_label: str, y_label: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure = Figure(size, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25, color=INK, linewidth=0.5)
    return figure, axes


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    """Below the axes, where it covers no curve; the figure grows by its lines."""
    columns = 2 if max(len(label) for label in labels) <= LONG_LABEL else 1
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.22 * -(-len(labels) // columns))
    figure.legend(loc="outside lower left", ncols=columns, handlelength=3)


def _svg(figure: Figure, alt: str) -> Markup:
    """The figure as an `<svg>` element with ids of its own, without metadata."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    prefix = f"c{next(_NUMBERS)}-"
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1))
