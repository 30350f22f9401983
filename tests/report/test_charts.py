"""Charts: inline SVG with text in the page's color, an alternative text, and ids of its own."""

import re

import numpy as np
from PIL import Image

from dual_cross_attention.report.charts import Line, lines_chart, reliability_chart
from dual_cross_attention.report.reliability import reliability
from dual_cross_attention.report.thumbnails import data_uri, overlay


def test_a_chart_is_inline_svg():
    lines = [Line("<b>$x$", [1, 2, 3], [4.0, 2.0, 1.0]), Line("other", [1, 2], [3.0, 3.5])]
    one, other = (lines_chart('Loss "x"', lines, "epoch", "loss").svg for _ in range(2))
    assert one.startswith("<svg") and "<metadata" not in one and "#010203" not in one and "currentColor" in one
    assert "&lt;b&gt;$x$" in one and "<b>" not in one
    alt = re.search(r'aria-label="([^"]*)"', one)[1]
    assert alt == "Loss &#34;x&#34;, by epoch. &lt;b&gt;$x$: 4 to 1; other: 3 to 3.5."
    ids = [set(re.findall(r'\bid="([^"]+)"', each)) for each in (one, other)]
    assert ids[0] and not ids[0] & ids[1]
    for found, svg in zip(ids, (one, other), strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= found


def test_reliability_chart_names_the_error():
    bins = reliability(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    assert f"ECE {100 * bins.ece:.2f} %" in reliability_chart("Reliability", {"calibrated": bins}).svg


def test_attention_over_an_image():
    image = np.full((20, 30, 3), 100, np.uint8)
    covered = overlay(image, np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert covered.shape == (20, 30, 3)
    low, high = np.array([0, 34, 78]), np.array([254, 232, 56])  # the ends of cividis
    assert np.abs(covered[0, 0] - (0.55 * low + 45)).max() < 3
    assert np.abs(covered[-1, -1] - (0.55 * high + 45)).max() < 3
    assert np.ptp(overlay(image, np.ones((2, 2))).reshape(-1, 3), axis=0).max() == 0
    assert data_uri(Image.fromarray(covered)).startswith("data:image/jpeg;base64,/9j/")
