"""Evaluation of a classifier, with what a report shows beyond its metrics: a few numbers of each test image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rich.console import Console

from dual_cross_attention.devices import autocast
from dual_cross_attention.metrics.coarse import CoarseAccuracy, coarse_accuracy
from dual_cross_attention.progress import track
from dual_cross_attention.report.opened_run import OpenedRun, numpy
from dual_cross_attention.report.reliability import Reliability, reliability


class ClassAccuracy(NamedTuple):
    """Accuracy of the test images of one class, in percent."""

    label: int
    images: int
    accuracy: float


class ConfusedPair(NamedTuple):
    """Two classes that are mistaken for each other.

    Args:
        first, second: labels; `first` is mistaken for `second` at least as often as the other way round.
        first_as_second, second_as_first: number of test images.
    """

    first: int
    second: int
    first_as_second: int
    second_as_first: int


@dataclass(frozen=True)
class ClassifierResult:
    """Predictions for the n test images that could be read, of all branches together (the vote).

    Args:
        metrics: in percent, as of `FGVCTask.compute_metrics`.
        positions: (n,) in the list of test images.
        labels, predicted: (n,) classes.
        confidence: (n,) probability of the predicted class, 0..1, calibrated if the model is.
        uncalibrated: (n,) the same without calibration.
    """

    metrics: dict[str, float]
    positions: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    uncalibrated: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool."""
        return self.labels == self.predicted

    def reliability(self, is_calibrated: bool = True) -> Reliability:
        """Of `confidence`, or of `uncalibrated`."""
        return reliability(self.confidence if is_calibrated else self.uncalibrated, self.correct)

    def by_class(self) -> list[ClassAccuracy]:
        """Of each class with test images, the lowest accuracy first."""
        images = np.bincount(self.labels)
        right = np.bincount(self.labels[self.correct], minlength=len(images))
        found = [
            ClassAccuracy(int(label), int(images[label]), 100 * float(right[label] / images[label]))
            for label in images.nonzero()[0]
        ]
        return sorted(found, key=lambda each: (each.accuracy, each.label))

    def by_coarse_class(self, coarse_classes: Sequence[str] | None) -> CoarseAccuracy | None:
        """See `coarse_accuracy`; None: there are no coarse classes."""
        return coarse_accuracy(self.labels, self.predicted, coarse_classes) if coarse_classes else None

    def confused_pairs(self, most: int) -> list[ConfusedPair]:
        """Pairs of classes by the number of mistakes in both directions, the most first."""
        wrong = ~self.correct
        pairs, counts = np.unique(np.stack([self.labels[wrong], self.predicted[wrong]]), axis=1, return_counts=True)
        mistakes = {(int(a), int(b)): int(n) for a, b, n in zip(*pairs, counts, strict=True)}
        found = []
        for a, b in {(min(pair), max(pair)) for pair in mistakes}:
            there, back = mistakes.get((a, b), 0), mistakes.get((b, a), 0)
            found.append(ConfusedPair(a, b, there, back) if there >= back else ConfusedPair(b, a, back, there))
        found.sort(key=lambda each: (-each.first_as_second - each.second_as_first, each.first, each.second))
        return found[:most]

    def confident_mistakes(self, most: int) -> np.ndarray:
        """Rows of wrong predictions, the largest confidence first."""
        order = np.argsort(-self.confidence, kind="stable")
        return order[~self.correct[order]][:most]

    def rows_of(self, label: int, predicted: int, most: int) -> np.ndarray:
        """Rows of a class that are predicted as another (or the same) class, the largest confidence first."""
        order = np.argsort(-self.confidence, kind="stable")
        return order[(self.labels[order] == label) & (self.predicted[order] == predicted)][:most]


def evaluate_classifier(opened: OpenedRun, console: Console) -> ClassifierResult:
    """One pass over the test images.

    Raises:
        InputError: none of them can be read.
        TrainingDivergedError: the model's output is NaN or infinite.
    """
    task, calibration = opened.task, opened.loaded.calibration
    columns: list[tuple[np.ndarray, ...]] = []
    task.eval()
    task.reset_metrics()
    with autocast(opened.loaded.device, opened.loaded.precision):
        for batch in track(opened.unreadable.watch(opened.loader), "evaluate", len(opened.loader), console):
            probabilities = task.probabilities(task.eval_step(batch))[""]
            best = probabilities.max(dim=-1)
            calibrated = best.values if calibration is None else calibration.of_probabilities(probabilities).amax(-1)
            valid = batch["valid"].cpu().numpy()
            values = (batch["indices"], batch["labels"], best.indices, calibrated, best.values)
            columns.append(tuple(numpy(each)[valid] for each in values))
        metrics = task.compute_metrics()
    return ClassifierResult(metrics, *(np.concatenate(parts) for parts in zip(*columns, strict=True)))
