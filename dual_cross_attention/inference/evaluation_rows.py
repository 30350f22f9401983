"""Files of one row per test image: CSV, JSON, JSON Lines or Parquet."""

from collections.abc import Callable, Sequence

from torch import Tensor

from dual_cross_attention.data.dataset import ImageDataset
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.inference.row_files import Row
from dual_cross_attention.tasks.task import Batch

MEASURES = {"prediction": "string", "probability": "float64", "label_probability": "float64"}
"""Columns of each branch, with their types in Parquet."""


class EvaluationRows:
    """Makes a row of each test image from the class probabilities of its batch.

    Columns: path, label (the true class), prediction and correct; probability (of the predicted class) and
    label_probability (of the true class); prediction_sa, probability_sa, label_probability_sa and the same with _glca;
    error. Those without a suffix are of SA and GLCA together, as in the metrics. An image that could not be read has
    its path, its label, and the reason in error; its other columns are empty. Where classes have coarse classes,
    coarse_label and coarse_prediction come after correct.

    Args:
        write: takes a row.
        dataset: names the images.
        classes: class names.
        unreadable: knows the reasons why images could not be read.
        coarse_classes: coarse class of each class; None: there are none.
    """

    def __init__(
        self,
        write: Callable[[Row], None],
        dataset: ImageDataset,
        classes: Sequence[str],
        unreadable: UnreadableImages,
        coarse_classes: Sequence[str] | None = None,
    ):
        self.write, self.dataset, self.classes, self.unreadable = write, dataset, classes, unreadable
        self.coarse_classes = coarse_classes

    def add(self, batch: Batch, probabilities: dict[str, Tensor]) -> None:
        """Writes the rows of a batch.

        Args:
            batch: see `data.dataset.collate`.
            probabilities: (B, C) by the suffix of the columns, "" first, see `FGVCTask.probabilities`.
        """
        on_cpu = {suffix: scores.detach().double().cpu() for suffix, scores in probabilities.items()}
        best = {suffix: scores.max(-1) for suffix, scores in on_cpu.items()}
        positions = zip(batch["indices"].tolist(), batch["labels"].tolist(), strict=True)
        for place, (index, label) in enumerate(positions):
            name = self.dataset.name(index)
            row: Row = dict.fromkeys(columns([*probabilities], self.coarse_classes is not None))
            row |= {"path": name, "label": self.classes[label], "error": self.unreadable.found.get(name)}
            if self.coarse_classes:
                row["coarse_label"] = self.coarse_classes[label]
            if row["error"] is None:
                for suffix, scores in on_cpu.items():
                    predicted = int(best[suffix].indices[place])
                    row[f"prediction{suffix}"] = self.classes[predicted]
                    row[f"probability{suffix}"] = round(float(best[suffix].values[place]), 6)
                    row[f"label_probability{suffix}"] = round(float(scores[place, label]), 6)
                    if not suffix:
                        row["correct"] = predicted == label
                        if self.coarse_classes:
                            row["coarse_prediction"] = self.coarse_classes[predicted]
            self.write(row)


def columns(suffixes: Sequence[str], has_coarse_classes: bool = False) -> dict[str, str]:
    """Names of the columns, with their types in Parquet; `suffixes` are those of the branches, "" first."""
    measures = {f"{measure}{suffix}": kind for suffix in suffixes for measure, kind in MEASURES.items()}
    return {
        "path": "string",
        "label": "string",
        "prediction": "string",
        "correct": "bool",
        **(dict.fromkeys(("coarse_label", "coarse_prediction"), "string") if has_coarse_classes else {}),
        **measures,
        "error": "string",
    }
