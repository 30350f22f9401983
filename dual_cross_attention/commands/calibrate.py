"""`dcal calibrate`: probabilities that are right, and thresholds for images of no known class or identity."""

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from rich.console import Console
from rich.table import Table

from dual_cross_attention.commands.output import check_writable, open_console, write_json
from dual_cross_attention.configs.arguments import positional, read_options
from dual_cross_attention.text import escape


@dataclass(kw_only=True)
class CalibrateOptions:
    """Calibrates a model on labeled images that it was not trained on. Of a classifier: temperatures for its
    probabilities, and a threshold below which `dcal predict` calls an image unknown. Of re-identification: distances up
    to which an image is of an enrolled identity, by gallery size, and the probability that two are the same. The result
    is written into the header of the model file; weights do not change. The table is fitted on half of the images (of
    re-identification, of the identities) and measured on the other half; what is stored is fitted on all."""

    EXAMPLE: ClassVar = "dcal calibrate runs/birds --split val --output birds.safetensors"
    GROUPS: ClassVar = {
        "data": "dataset data_root split cameras",
        "calibration": "score keep fpir",
        "output": "output json",
        "hardware and speed": "device precision batch_size num_workers",
    }

    model: str = positional("MODEL")
    """Run folder, whose best model is calibrated, a .safetensors model file, or a directory of save_pretrained."""
    dataset: str | None = None
    """Another dataset: of classes that the model knows, or of re-identification. null: that of the run."""
    data_root: str | None = None
    """Folder of the dataset, or the folder that contains it; only test images are needed. null: where the run found
    it."""
    split: Literal["val", "test"] | None = None
    """Classifiers, datasets with both: which images to calibrate on. null: val if it exists, else test."""
    cameras: Literal["auto", "none", "name"] | None = None
    """Re-identification, dataset folder: name reads cameras from file names or the column camera of a CSV file; none:
    there are none, and a query ignores only its own file; auto: name if they are cameras. null: as in the run."""
    score: Literal["probability", "energy", "agreement"] | None = None
    """Classifiers: the score that is thresholded. probability: that of the predicted class; energy: T log sum
    exp(logits / T), mean of SA and GLCA; agreement: overlap of the probabilities of SA and GLCA (with predict --branch:
    probability). null: probability."""
    keep: float | None = None
    """Classifiers: share of the images, all of known classes, that stay known. null: 0.95."""
    fpir: float | None = None
    """Re-identification: wanted false-positive identification rate, the share of images of identities that are not
    enrolled which are taken for an enrolled one. null: 0.01."""
    output: str | None = None
    """Write a copy of the model file with the calibration, .safetensors. null: write it into the model file itself."""
    batch_size: int | None = None
    """Images per forward pass. null: as in the run."""
    num_workers: int | None = None
    """DataLoader workers. null: as in the run."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """auto: bf16 if the device multiplies it in hardware, fp16 on older CUDA devices, else fp32. null: as in the
    run."""
    json: str | None = None
    """Write the result as JSON to this file; - writes it to standard output, and nothing else."""


def run(arguments: list[str]) -> None:
    """Prints what the calibration reaches on images that it was not fitted on, and what is stored."""
    options = read_options(CalibrateOptions, "calibrate", arguments)
    check_writable("output", options.output)
    console = open_console(options.json)
    from dual_cross_attention.inference.calibrate import calibrate

    given = {name: value for name, value in asdict(options).items() if name != "json"}
    result = calibrate(**given, console=console)
    SHOW[result["task"]](result, console)
    if result["unreadable"]:
        console.print(f"{result['unreadable']} images could not be read and were left out")
    console.print(f"calibration written to {escape(result['output'])}", soft_wrap=True, markup=False)
    stored = json.loads(result["calibration"].to_json())
    write_json(result | {"calibration": stored, "held_out": stored["held_out"]}, options.json)


def _show_classifier(result: dict[str, Any], console: Console) -> None:
    calibration, held_out = result["calibration"], result["held_out"]
    table = _table(
        f"measured on {held_out['images']:,} images that it was not fitted on",
        ("branch", "ECE % before", "after", "NLL before", "after", "temperature (all images)"),
    )
    for name, label in _named(result):
        measured = held_out[name]
        table.add_row(
            label,
            f"{100 * measured['ece_uncalibrated']:.2f}",
            f"{100 * measured['ece']:.2f}",
            f"{measured['nll_uncalibrated']:.3f}",
            f"{measured['nll']:.3f}",
            f"{calibration.answers[name].temperature:.3f}",
        )
    console.print(table)
    together = calibration.answers["together"]
    console.print(
        f"known: {together.score} of at least {together.threshold:.4g}, which keeps {100 * together.kept:.1f} % of the "
        f"{result['images']:,} images; fitted on one half, {100 * held_out['kept']:.1f} % of the other",
        soft_wrap=True,
    )


def _show_reid(result: dict[str, Any], console: Console) -> None:
    calibration, held_out = result["calibration"], result["held_out"]
    if held_out is not None:
        table = _table(
            f"measured on {held_out.identities:,} identities ({held_out.probes:,} query images) that it was not fitted "
            "on",
            ("branch", "enrolled identities", "threshold", "FPIR %", "FNIR %"),
        )
        for name, label in _named(result):
            rates = held_out.answers[name]
            for place, size in enumerate(held_out.gallery_sizes):
                fnir = rates.fnir[place]
                table.add_row(
                    label,
                    f"{size:,}",
                    f"{rates.thresholds[place]:.4f}",
                    f"{100 * rates.fpir[place]:.2f}",
                    "" if fnir is None else f"{100 * fnir:.1f}",
                )
        console.print(table)
    for name, label in _named(result):
        answer = calibration.answers[name]
        thresholds = ", ".join(
            f"{size:,}: {threshold:.4f}"
            for size, threshold in zip(calibration.gallery_sizes, answer.thresholds, strict=True)
        )
        console.print(
            f"{label}: {calibration.distance} distance at most, for FPIR {100 * calibration.fpir:g} %, by number of "
            f"enrolled identities: {thresholds}; P(same) is 0.5 at {-answer.intercept / answer.slope:.4f}",
            soft_wrap=True,
        )
    console.print(
        f"fitted on {calibration.probes:,} queries and {calibration.gallery_images:,} gallery images of "
        f"{calibration.identities:,} identities",
        soft_wrap=True,
    )


SHOW = {"fgvc": _show_classifier, "reid": _show_reid}
"""By task."""


def _named(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Answers with their titles; all branches together where there are several."""
    labels = {"sa": "SA", "glca": "GLCA", "together": "SA + GLCA"}
    return [
        (name, label)
        for name, label in labels.items()
        if name in result["calibration"].answers and (name != "together" or len(result["predicting"]) > 1)
    ]


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="left" if name == "branch" else "right")
    return table
