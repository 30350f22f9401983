"""`dcal calibrate`: probabilities that are right, and a threshold for images of no known class."""

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from rich.table import Table

from dual_cross_attention.commands.output import check_writable, open_console, write_json
from dual_cross_attention.configs.arguments import positional, read_options
from dual_cross_attention.text import escape


@dataclass(kw_only=True)
class CalibrateOptions:
    """Calibrates a classifier on labeled images that it was not trained on: temperatures for its probabilities, and a
    threshold below which `dcal predict` calls an image unknown. Both are written into the header of the model file. The
    predicted classes and the weights do not change. The table is fitted on half of the images and measured on the
    other; what is stored is fitted on all."""

    EXAMPLE: ClassVar = "dcal calibrate runs/birds --split val --output birds.safetensors"
    GROUPS: ClassVar = {
        "data": "dataset data_root split",
        "calibration": "score keep",
        "output": "output json",
        "hardware and speed": "device precision batch_size num_workers",
    }

    model: str = positional("MODEL")
    """Run folder, whose best model is calibrated, a .safetensors model file, or a directory of save_pretrained."""
    dataset: str | None = None
    """Another dataset of classes that the model knows. null: that of the run."""
    data_root: str | None = None
    """Folder of the dataset, or the folder that contains it; only test images are needed. null: where the run found
    it."""
    split: Literal["val", "test"] | None = None
    """Datasets folder and shards: which images to calibrate on. null: val if it exists, else test."""
    score: Literal["probability", "energy", "agreement"] = "probability"
    """What the threshold is on. probability: that of the predicted class; energy: T log sum exp(logits / T), mean of SA
    and GLCA; agreement: overlap of the probabilities of SA and GLCA (with predict --branch: probability)."""
    keep: float = 0.95
    """Share of the images, all of known classes, that stay known."""
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
    """Prints calibration errors before and after, and the threshold."""
    options = read_options(CalibrateOptions, "calibrate", arguments)
    check_writable("output", options.output)
    console = open_console(options.json)
    from dual_cross_attention.inference.calibrate import calibrate

    given = {name: value for name, value in asdict(options).items() if name != "json"}
    result = calibrate(**given, console=console)
    calibration, held_out = result["calibration"], result["held_out"]
    console.print(_table(result))
    together = calibration.answers["together"]
    console.print(
        f"known: {together.score} of at least {together.threshold:.4g}, which keeps {100 * together.kept:.1f} % of the "
        f"{result['images']:,} images; fitted on one half, {100 * held_out['kept']:.1f} % of the other",
        soft_wrap=True,
    )
    if result["unreadable"]:
        console.print(f"{result['unreadable']} images could not be read and were left out")
    console.print(f"calibration written to {escape(result['output'])}", soft_wrap=True, markup=False)
    write_json(result | {"calibration": json.loads(calibration.to_json())}, options.json)


def _table(result: dict[str, Any]) -> Table:
    held_out, answers = result["held_out"], result["calibration"].answers
    table = Table(title=f"measured on {held_out['images']:,} images that it was not fitted on")
    for name in ("branch", "ECE % before", "after", "NLL before", "after", "temperature (all images)"):
        table.add_column(name, justify="left" if name == "branch" else "right")
    for name, label in {"sa": "SA", "glca": "GLCA", "together": "SA + GLCA"}.items():
        if name in answers and (name != "together" or len(result["predicting"]) > 1):
            measured = held_out[name]
            table.add_row(
                label,
                f"{100 * measured['ece_uncalibrated']:.2f}",
                f"{100 * measured['ece']:.2f}",
                f"{measured['nll_uncalibrated']:.3f}",
                f"{measured['nll']:.3f}",
                f"{answers[name].temperature:.3f}",
            )
    return table
