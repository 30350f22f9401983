"""Calibrates a classifier on labeled images that it was not trained on, and writes the result into its model file."""

import hashlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from dual_cross_attention.data.fingerprint import SplitFingerprint
from dual_cross_attention.data.names import composed
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.devices import (
    autocast,
    available_precision,
    choose_device,
    choose_precision,
    keep_freed_memory,
)
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibration import TOGETHER, CalibratedAnswer, Calibration
from dual_cross_attention.inference.evaluation import read_test_images
from dual_cross_attention.inference.model_files import (
    BEST_ON_TEST,
    SavedModel,
    find_model_file,
    read_model,
    write_calibration,
)
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


def calibrate(
    model: str | Path,
    dataset: str | None = None,
    data_root: str | None = None,
    split: Literal["val", "test"] | None = None,
    score: Score = "probability",
    keep: float = 0.95,
    output: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fits temperatures and a threshold for "unknown", and writes them into the header of the model file.

    What is stored is fitted on all images. What is reported is fitted on one half of them and measured on the other,
    by a hash of "CLASS/FILE".

    Args:
        model: a run's folder (its best model is taken), a model file, or a directory of `save_pretrained`.
        dataset, data_root, device, precision, batch_size, num_workers: as of `evaluate`.
        split: "val" or "test", where the data has both; None: val if it exists, else test.
        score: what the threshold is on, see `metrics.confidence`.
        keep: share of the images, which are all of known classes, that the threshold keeps.
        output: a copy of the model file with the calibration; None: the model file itself is replaced.
        console: shows notes, warnings and progress; None: not shown.

    Returns:
        "checkpoint", "output", "predicting" (the branches that answer together), "images", "unreadable", "calibration"
        (as stored), and "held_out": "images", "kept" (the share of them that is known), and by answer "ece", "nll",
        "ece_uncalibrated", "nll_uncalibrated".

    Raises:
        InputError: a model for re-identification, images that the model was trained on, or data that does not fit.
    """
    if split == "train":
        raise InputError("--split: a model is never calibrated on training images: give val or test")
    if not 0 < keep <= 1:
        raise InputError(f"--keep: expected a share above 0 and at most 1, got {keep}")
    source = find_model_file(model)
    target = source if output is None else Path(output)
    if target.suffix.lower() != ".safetensors":
        raise InputError(f"--output: expected a file that ends in .safetensors, got '{target}'")
    chosen = choose_device(device)
    keep_freed_memory()
    saved = read_model(source)
    if saved.config.task != "fgvc":
        raise InputError("dcal calibrate is for classifiers so far: this model is of task reid")
    if score == "agreement" and len(saved.model.predicting_branches) != 2:
        raise InputError("--score agreement compares SA with GLCA: this model predicts with SA alone")
    chosen_precision = choose_precision(
        precision or available_precision(saved.config.precision, chosen), chosen, saved.config.format_version
    )
    console = console or Console(quiet=True)
    changed = {
        "dataset": dataset,
        "data_root": data_root,
        "eval_batch_size": batch_size,
        "num_workers": num_workers,
    }
    setup = read_test_images(saved, changed, split, "refuse", console)
    images = check_not_trained_on(saved, setup, console)
    unreadable = UnreadableImages(lambda message: console.print(f"warning: {message}", style="yellow"))
    found = compute_logits(saved.model.to(chosen), setup, chosen_precision, unreadable, console)
    held_out = measure_held_out(found, score, keep)
    calibration = Calibration(
        fit_answers(found, score, keep),
        keep,
        len(found.labels),
        setup.config.dataset,
        split,
        images.digest,
        date.today().isoformat(),
    )
    for warning in doubts(found):
        console.print(f"warning: {warning}", style="yellow")
    write_calibration(source, target, calibration, saved.chosen_by)
    return {
        "checkpoint": str(source),
        "output": str(target),
        "predicting": found.predicting,
        "images": len(found.labels),
        "unreadable": len(unreadable),
        "held_out": held_out,
        "calibration": calibration,
    }


def check_not_trained_on(saved: SavedModel, setup: RunSetup, console: Console) -> SplitFingerprint:
    """The fingerprint of the images; says what else is known about them.

    Raises:
        InputError: the model was trained on them.
    """
    images = setup.fingerprint().splits["test"]
    recorded = saved.data.splits if saved.data else {}
    if images == recorded.get("train"):
        raise InputError(
            f"a model is never calibrated on its training images, and these {images.images:,} images are those: give "
            "--data_root of others"
        )
    if images == recorded.get("test"):
        if saved.chosen_by == BEST_ON_TEST:
            console.print(
                "note: the epoch of this model was chosen by its score on these images, so the calibration is slightly "
                "optimistic; images that no choice depended on are better"
            )
    else:
        why = "these are not the test images of the run" if recorded else "the model file does not record its data"
        console.print(f"note: {why}: make sure that the model was not trained on any of these images", style="yellow")
    return images


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

    A temperature that the images do not determine is 1, which leaves the probabilities as they are; `doubts` says so.

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


def first_half(names: Sequence[str]) -> Tensor:
    """(N,) bool: about half of the names, chosen by a hash of each, so that a name is always on the same side."""
    digests = (hashlib.blake2b(composed(name).encode("utf-8", "surrogateescape")).digest() for name in names)
    return torch.tensor([digest[0] % 2 == 0 for digest in digests], dtype=torch.bool)


def doubts(found: LabeledLogits) -> list[str]:
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
