"""Fits the calibration of a classifier: temperatures, and a threshold for images of no known class."""

from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.devices import autocast
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibration import TOGETHER, CalibratedAnswer, Calibration
from dual_cross_attention.inference.calibrator import Calibrator, Fitted
from dual_cross_attention.inference.halves import first_half
from dual_cross_attention.inference.model_files import SavedModel
from dual_cross_attention.metrics.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from dual_cross_attention.metrics.confidence import Score, confidence, log_mean_probability, threshold_that_keeps
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.progress import track
from dual_cross_attention.tasks.data_module import RunSetup

FEW_IMAGES = 200
"""Below this, a warning says that the fit is uncertain."""
NAMES = {"sa": "SA", "glca": "GLCA", TOGETHER: "SA + GLCA"}


class ClassifierCalibrator(Calibrator[RunSetup]):
    """See `Calibrator`.

    Args:
        saved: the model.
        score: what the threshold is on, see `metrics.confidence`.
        keep: share of the images, which are all of known classes, that the threshold keeps.

    Raises:
        InputError: a share that is not above 0 and at most 1, or a score that the model does not have.
    """

    options = ("score", "keep")

    def __init__(self, saved: SavedModel, score: Score = "probability", keep: float = 0.95):
        if not 0 < keep <= 1:
            raise InputError(f"--keep: expected a share above 0 and at most 1, got {keep}")
        if score == "agreement" and len(saved.model.predicting_branches) != 2:
            raise InputError("--score agreement compares SA with GLCA: this model predicts with SA alone")
        self.saved, self.score, self.keep = saved, score, keep

    def fit(
        self,
        setup: RunSetup,
        data: DataFingerprint,
        split: str | None,
        device: torch.device,
        precision: str,
        unreadable: UnreadableImages,
        console: Console,
    ) -> Fitted:
        found = compute_logits(self.saved.model.to(device), setup, precision, unreadable, console)
        held_out = measure_held_out(found, self.score, self.keep)
        calibration = Calibration(
            fit_answers(found, self.score, self.keep),
            self.keep,
            len(found.labels),
            setup.config.dataset,
            split,
            data.splits["test"].digest,
            date.today().isoformat(),
            held_out,
        )
        return Fitted(calibration, {"images": len(found.labels), "predicting": found.predicting}, uncertainties(found))


class LabeledLogits(NamedTuple):
    """What a model computes of labeled images.

    Args:
        logits: (N, C) float32 on CPU, by branch, "sa" first.
        labels: (N,) int64.
        names: "CLASS/FILE" of each image.
        predicting: the branches that answer together.
    """

    logits: dict[str, Tensor]
    labels: Tensor
    names: list[str]
    predicting: list[str]

    def __getitem__(self, chosen: Tensor) -> "LabeledLogits":
        """Those where `chosen`, (N,) bool, is true."""
        return LabeledLogits(
            {name: each[chosen] for name, each in self.logits.items()},
            self.labels[chosen],
            [name for name, is_chosen in zip(self.names, chosen.tolist(), strict=True) if is_chosen],
            self.predicting,
        )

    def of(self, answer: str) -> dict[str, Tensor]:
        """The logits of the branches that give an answer, "together", "sa" or "glca"."""
        return {name: self.logits[name] for name in (self.predicting if answer == TOGETHER else [answer])}

    @property
    def answers(self) -> list[str]:
        return [*self.logits, TOGETHER]


@torch.no_grad()
def compute_logits(
    model: DualCrossAttentionViT, setup: RunSetup, precision: str, unreadable: UnreadableImages, console: Console
) -> LabeledLogits:
    """Logits of all test images that can be read; the model is in evaluation mode.

    Raises:
        InputError: no image can be read, or logits are NaN or infinite.
    """
    device = next(model.parameters()).device
    loader = setup.test_loader(model, device)
    branches = model.test_branches
    batches: list[dict[str, Tensor]] = []
    labels, valid = list[Tensor](), list[Tensor]()
    with autocast(device, precision):
        for batch in track(unreadable.watch(loader), "calibrate", len(loader), console):
            logits = model(batch["images"].to(device, non_blocking=True)).logits
            batches.append({name: logits[name].float().cpu() for name in branches})
            labels.append(batch["labels"])
            valid.append(batch["valid"])
    together = {name: torch.cat([batch[name] for batch in batches]) for name in branches}
    all_labels = torch.cat(labels)
    files = [loader.dataset.name(number) for number in range(len(all_labels))]
    names = [f"{setup.classes[label]}/{Path(file).name}" for label, file in zip(all_labels, files, strict=True)]
    found = LabeledLogits(together, all_labels, names, model.predicting_branches)[torch.cat(valid)]
    if not len(found.labels):
        raise InputError("none of the images can be read; the warnings above say why")
    if not all(each.isfinite().all() for each in found.logits.values()):
        raise InputError("the model's logits are NaN or infinite: it cannot be calibrated")
    return found


def fit_answers(found: LabeledLogits, score: Score, keep: float) -> dict[str, CalibratedAnswer]:
    """Temperatures, then thresholds, of each branch and of all that predict together.

    A temperature that the images do not determine is 1, which leaves the probabilities as they are; `uncertainties`
    says so.

    A branch alone cannot agree with the other one: where the score is "agreement", its own is "probability".
    """
    temperatures = {
        name: fit_temperature(log_mean_probability(found.of(name)), found.labels) or 1.0 for name in found.answers
    }
    answers = {}
    for name in found.answers:
        own = score if name == TOGETHER or score != "agreement" else "probability"
        scores = confidence(own, found.of(name), temperatures, temperatures[name])
        threshold = threshold_that_keeps(scores, keep)
        kept = (scores >= threshold).double().mean().item()
        answers[name] = CalibratedAnswer(temperatures[name], own, threshold, kept)
    return answers


def measure_held_out(found: LabeledLogits, score: Score, keep: float) -> dict[str, Any]:
    """Fits on one half and measures on the other; see `calibrate`.

    Raises:
        InputError: too few images for two halves.
    """
    first = first_half(found.names)
    fitted_on, measured_on = found[first], found[~first]
    if not (len(fitted_on.labels) and len(measured_on.labels)):
        raise InputError(f"too few images to calibrate on: {len(found.labels)}; expected some hundreds")
    answers = fit_answers(fitted_on, score, keep)
    result: dict[str, Any] = {"images": len(measured_on.labels)}
    for name, answer in answers.items():
        scores, labels = log_mean_probability(measured_on.of(name)), measured_on.labels
        result[name] = {
            "ece_uncalibrated": expected_calibration_error(scores, labels),
            "ece": expected_calibration_error(scores / answer.temperature, labels),
            "nll_uncalibrated": negative_log_likelihood(scores, labels),
            "nll": negative_log_likelihood(scores / answer.temperature, labels),
        }
    temperatures = {name: answer.temperature for name, answer in answers.items()}
    together = answers[TOGETHER]
    scores = confidence(together.score, measured_on.of(TOGETHER), temperatures, together.temperature)
    result["kept"] = (scores >= together.threshold).double().mean().item()
    return result


def uncertainties(found: LabeledLogits) -> list[str]:
    """Why the fit may be uncertain, a line each."""
    lines = []
    if len(found.labels) < FEW_IMAGES:
        lines.append(f"calibrated on {len(found.labels):,} images only: expected at least {FEW_IMAGES}")
    for name in found.answers:
        if fit_temperature(log_mean_probability(found.of(name)), found.labels) is None:
            lines.append(
                f"the images do not determine the temperature of {NAMES[name]}, which stays 1: all of them, or hardly "
                "any, are classified correctly"
            )
    return lines
