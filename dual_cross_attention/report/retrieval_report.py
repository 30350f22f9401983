"""The sections of a report that are of re-identification."""

from typing import Any

from rich.console import Console

from dual_cross_attention.report.charts import Line, lines_chart
from dual_cross_attention.report.opened_run import OpenedRun, short_path
from dual_cross_attention.report.retrieval import evaluate_retrieval
from dual_cross_attention.report.thumbnails import make_thumbnails

QUERIES, DEPTH = 10, 10
SHOWN_RANKS = 20
"""Of the CMC curve."""
BRANCHES = {"": "SA + GLCA", "sa": "SA", "glca": "GLCA"}
SECTIONS = [("cmc", "CMC"), ("cameras", "Cameras"), ("ranked", "Ranked lists"), ("faithfulness", "Attention")]


def retrieval_values(opened: OpenedRun, console: Console) -> tuple[str, dict[str, float], dict[str, Any]]:
    """Evaluates re-identification: the template, the metrics in percent, and the values of the template."""
    result = evaluate_retrieval(opened, QUERIES, DEPTH, console)
    positions = {position for each in result.ranked for position in (each.query, *each.gallery)}
    thumbnails = make_thumbnails(opened, positions, console)
    ranks = list(range(1, SHOWN_RANKS + 1))
    titles = BRANCHES if len(result.cmc) > 1 else {"": "SA"}
    lines = [Line(titles[name], ranks, curve[:SHOWN_RANKS].tolist()) for name, curve in result.cmc.items()]
    source = opened.setup.data.camera_source
    camera = source.camera if source else str
    return (
        "retrieval.html.j2",
        result.metrics,
        {
            "sections": [each for each in SECTIONS if each[0] != "cameras" or result.by_camera],
            "valid_queries": result.metrics["valid_queries"],
            "cmc": [lines_chart("Cumulative matching characteristics (CMC)", lines, "rank k", "% of queries")],
            "cameras": [(camera(each.camera), f"{each.queries:,}", f"{each.mAP:.2f}") for each in result.by_camera],
            "ranked_text": (
                f"The first {QUERIES // 2} queries are those with the lowest average precision, the others are evenly "
                f"spaced over all other queries up to the best one. Shown are their first {DEPTH} gallery images, with "
                f"the {opened.task.distance} distance."
            ),
            "ranked": [
                {
                    "name": short_path(opened.name(each.query)),
                    "average_precision": each.average_precision,
                    "thumbnail": thumbnails[each.query],
                    "gallery": [
                        {"thumbnail": thumbnails[position], "distance": distance, "is_match": is_match}
                        for position, distance, is_match in zip(
                            each.gallery, each.distances, each.is_match, strict=True
                        )
                    ],
                }
                for each in result.ranked
            ],
        },
    )
