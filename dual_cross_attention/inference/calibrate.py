"""Calibrates a model on labeled images that it was not trained on, and writes the result into its model file."""

from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.data.reid.camera_names import CameraMode
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.devices import choose_device, keep_freed_memory
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibrate_classifier import ClassifierCalibrator
from dual_cross_attention.inference.calibrate_reid import ReIDCalibrator
from dual_cross_attention.inference.calibrator import Calibrator
from dual_cross_attention.inference.evaluation import read_test_images
from dual_cross_attention.inference.model_files import (
    BEST_ON_TEST,
    SavedModel,
    find_model_file,
    read_model,
    write_calibration,
)
from dual_cross_attention.metrics.confidence import Score
from dual_cross_attention.tasks.data_module import RunSetup

CALIBRATORS: dict[str, type[Calibrator]] = {"fgvc": ClassifierCalibrator, "reid": ReIDCalibrator}
"""By task."""


def calibrate(
    model: str | Path,
    dataset: str | None = None,
    data_root: str | None = None,
    split: Literal["val", "test"] | None = None,
    score: Score | None = None,
    keep: float | None = None,
    output: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    console: Console | None = None,
    fpir: float | None = None,
    cameras: CameraMode | None = None,
) -> dict[str, Any]:
    """Fits a calibration, and writes it into the header of the model file.

    Of a classifier: temperatures and a threshold for images of no known class. Of re-identification: thresholds on the
    distance for a wanted false-positive identification rate by gallery size, and P(same).

    What is stored is fitted on all images. What is reported is fitted on one half and measured on the other: of a
    classifier's images, by a hash of "CLASS/FILE"; of re-identification's identities, by a hash of their names.

    Args:
        model: a run's folder (its best model is taken), a model file, or a directory of `save_pretrained`.
        dataset, data_root, device, precision, batch_size, num_workers: as of `evaluate`.
        split: of a classifier: "val" or "test", where the data has both; None: val if it exists, else test.
        score: of a classifier: what the threshold is on, see `metrics.confidence`; None: "probability".
        keep: of a classifier: share of the images, which are all of known classes, that the threshold keeps; None:
            0.95.
        output: a copy of the model file with the calibration; None: the model file itself is replaced.
        console: shows notes, warnings and progress; None: not shown.
        fpir: of re-identification: wanted false-positive identification rate; None: 0.01.
        cameras: of re-identification: as of `evaluate`.

    Returns:
        "checkpoint", "output", "task", "predicting" (the branches that answer together), "images", "unreadable",
        "calibration" (as stored, a `Calibration` or `ReIDCalibration`), and its "held_out"; of re-identification also
        "identities".

    Raises:
        InputError: images that the model was trained on, data that does not fit, or an option of another task.
    """
    if split == "train":
        raise InputError("--split: a model is never calibrated on training images: give val or test")
    source = find_model_file(model)
    if f"{model}".startswith("hf:") and output is None:
        raise InputError("--output: a calibration is not written into downloaded files: give a .safetensors file")
    if source.suffix == ".onnx":
        raise InputError(
            f"'{source}' is an exported model: calibrate the model that it was exported from, and export it again"
        )
    target = source if output is None else Path(output)
    if target.suffix.lower() != ".safetensors":
        raise InputError(f"--output: expected a file that ends in .safetensors, got '{target}'")
    chosen = choose_device(device)
    keep_freed_memory()
    saved = read_model(source)
    options = {"score": score, "keep": keep, "fpir": fpir}
    calibrator = _calibrator(saved, {name: value for name, value in options.items() if value is not None})
    chosen_precision = saved.choose_precision(chosen, precision)
    if cameras is not None and saved.config.task != "reid":
        raise InputError(f"--cameras: this model is of task {saved.config.task}, whose images have no cameras")
    console = console or Console(quiet=True)
    changed = {
        "dataset": dataset,
        "data_root": data_root,
        "eval_batch_size": batch_size,
        "num_workers": num_workers,
        "cameras": cameras,
    }
    setup = read_test_images(saved, changed, split, "refuse", console)
    data = check_not_trained_on(saved, setup, console)
    unreadable = UnreadableImages(lambda message: console.print(f"warning: {message}", style="yellow"))
    calibration, counts, warnings = calibrator.fit(setup, data, split, chosen, chosen_precision, unreadable, console)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow")
    write_calibration(source, target, calibration, saved.chosen_by)
    return {
        "checkpoint": str(source),
        "output": str(target),
        "task": saved.config.task,
        **counts,
        "unreadable": len(unreadable),
        "held_out": calibration.held_out,
        "calibration": calibration,
    }


def _calibrator(saved: SavedModel, given: dict[str, Any]) -> Calibrator:
    """That of the model's task, with the options that a user gave; raises InputError for those of another task."""
    kind = CALIBRATORS[saved.config.task]
    for name in given:
        if name not in kind.options:
            expected = " and ".join(f"--{each}" for each in kind.options)
            raise InputError(f"--{name}: this model is of task {saved.config.task}, whose calibration has {expected}")
    return kind(saved, **given)


def check_not_trained_on(saved: SavedModel, setup: RunSetup, console: Console) -> DataFingerprint:
    """The fingerprint of the images; says what else is known about them.

    Raises:
        InputError: the model was trained on them.
    """
    data = setup.fingerprint()
    recorded = saved.data.splits if saved.data else {}
    for name in setup.test_splits:
        images = data.splits[name]
        if images == recorded.get("train"):
            raise InputError(
                f"a model is never calibrated on its training images, and these {images.images:,} images are those: "
                "give --data_root of others"
            )
    if all(data.splits[name] == recorded.get(name) for name in setup.test_splits):
        if saved.chosen_by == BEST_ON_TEST:
            console.print(
                "note: the epoch of this model was chosen by its score on these images, so the calibration is slightly "
                "optimistic; images that no choice depended on are better"
            )
    else:
        why = "these are not the test images of the run" if recorded else "the model file does not record its data"
        console.print(f"note: {why}: make sure that the model was not trained on any of these images", style="yellow")
    return data
