"""The sections of a report that are of classification."""

from typing import Any

from rich.console import Console

from dual_cross_attention.explanation.figures import display_name
from dual_cross_attention.report.box_share import measure_inside
from dual_cross_attention.report.charts import histogram_chart, reliability_chart
from dual_cross_attention.report.classification import ClassifierResult, ConfusedPair, evaluate_classifier
from dual_cross_attention.report.faithfulness import measure_default_map
from dual_cross_attention.report.opened_run import OpenedRun, short_path
from dual_cross_attention.report.thumbnails import Thumbnail, make_thumbnails

PAIRS, IMAGES_A_SIDE, MISTAKES = 8, 2, 12
LOWEST, MOST_CLASSES = 10, 1000
"""Classes in the table of the lowest accuracies, and in that of all."""
SECTIONS = [
    ("classes", "Classes"),
    ("confused", "Mistaken classes"),
    ("mistakes", "Mistakes"),
    ("reliability", "Probabilities"),
    ("faithfulness", "Attention"),
]


def classifier_values(opened: OpenedRun, console: Console) -> tuple[str, dict[str, float], dict[str, Any]]:
    """Evaluates a classifier: the template, the metrics in percent, and the values of the template."""
    result = evaluate_classifier(opened, console)
    pairs = [(pair, _rows_of(result, pair)) for pair in result.confused_pairs(PAIRS)]
    mistakes = result.confident_mistakes(MISTAKES)
    rows = [*mistakes, *(row for _, sides in pairs for side in sides for row in side)]
    thumbnails = make_thumbnails(opened, result.positions[rows], console)
    by_class = result.by_class()
    images = {each.label: each.images for each in by_class}
    names = shown_names(opened.loaded.labels)

    def shown(row: int) -> dict[str, Any]:
        return _shown(opened, result, names, thumbnails, row)

    faithfulness = measure_default_map(opened, result.positions, console)
    inside = measure_inside(opened, result.positions, console)
    return (
        "classifier.html.j2",
        result.metrics,
        {
            "sections": SECTIONS,
            "names": names,
            "lowest": by_class[:LOWEST],
            "by_class": by_class[:MOST_CLASSES],
            "number_of_classes": len(by_class),
            "coarse": result.by_coarse_class(opened.setup.coarse_classes),
            "pairs": [
                {
                    "first": names[pair.first],
                    "second": names[pair.second],
                    "there": pair.first_as_second,
                    "back": pair.second_as_first,
                    "first_images": images[pair.first],
                    "second_images": images.get(pair.second, 0),
                    "sides": [[shown(row) for row in side] for side in sides],
                }
                for pair, sides in pairs
            ],
            "mistakes": [shown(row) for row in mistakes],
            "calibration": _calibration(opened),
            "reliability": _reliability(opened, result),
            "faithfulness": faithfulness,
            "inside": inside,
        },
    )


def shown_names(labels: list[str]) -> list[str]:
    """Class names without leading numbers and underscores, as in figures, if they are still all different."""
    names = [display_name(label) for label in labels]
    return names if len(set(names)) == len(names) else labels


def _rows_of(result: ClassifierResult, pair: ConfusedPair) -> list[list[int]]:
    """Images of both classes: those mistaken for the other one, else those that are right."""
    sides = []
    for label, other in ((pair.first, pair.second), (pair.second, pair.first)):
        found = result.rows_of(label, other, IMAGES_A_SIDE).tolist()
        found += result.rows_of(label, label, IMAGES_A_SIDE - len(found)).tolist()
        sides.append(found)
    return sides


def _shown(
    opened: OpenedRun, result: ClassifierResult, names: list[str], thumbnails: dict[int, Thumbnail], row: int
) -> dict[str, Any]:
    position = int(result.positions[row])
    return {
        "thumbnail": thumbnails[position],
        "name": short_path(opened.name(position)),
        "label": names[result.labels[row]],
        "predicted": names[result.predicted[row]],
        "correct": bool(result.correct[row]),
        "confidence": float(result.confidence[row]),
    }


def _calibration(opened: OpenedRun) -> str:
    if opened.loaded.calibration is None:
        return (
            "The model is not calibrated, so these are the probabilities of the softmax. dcal calibrate fits them on "
            "images that the model was not trained on."
        )
    fitted = opened.loaded.calibration
    return (
        f"The model is calibrated, on {fitted.images:,} images of {fitted.dataset}"
        f"{f' ({fitted.split})' if fitted.split else ''}. If these are the test images of this report, the diagram is "
        "optimistic."
    )


def _reliability(opened: OpenedRun, result: ClassifierResult) -> list[Any]:
    bins = {"not calibrated": result.reliability(is_calibrated=False)}
    if opened.loaded.calibration is not None:
        bins = {"calibrated": result.reliability(), **bins}
    counts = next(iter(bins.values())).counts
    return [
        reliability_chart("Reliability diagram", bins),
        histogram_chart("Probabilities of the predicted classes", counts, "probability", "images"),
    ]
