"""`dcal predict`: the classes of any images."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dual_cross_attention.commands.inference_options import (
    HARDWARE,
    InferenceOptions,
    find_inputs,
    open_model,
    part_settings,
    report,
)
from dual_cross_attention.commands.output import check_writable, show_log
from dual_cross_attention.configs.arguments import read_options
from dual_cross_attention.errors import InputError
from dual_cross_attention.progress import make_console
from dual_cross_attention.text import escape

if TYPE_CHECKING:
    from dual_cross_attention.inference.prediction import Prediction

WIDEST = 100
"""Characters of a column of the table, at most; what is longer sticks out."""


@dataclass(kw_only=True)
class PredictOptions(InferenceOptions):
    """Classifies images. The result is a table, or a file with one row per image. An image that cannot be read is a row
    with the reason, and the exit status is 1."""

    EXAMPLE: ClassVar = "dcal predict runs/birds photos/ --output birds.csv"
    GROUPS: ClassVar = {"prediction": "branch top_k", "output": "output resume", "hardware and speed": HARDWARE}

    output: str | None = None
    """File to write: .csv, .json, .jsonl or .parquet; - writes JSON Lines to standard output. null: a table."""
    top_k: int = 5
    """Number of classes per image, the most probable first."""


def run(arguments: list[str]) -> int:
    options = read_options(PredictOptions, "predict", arguments)
    console = make_console(stderr=options.output in (None, "-"))
    show_log(console)
    from dual_cross_attention.inference import prediction_files as files
    from dual_cross_attention.inference.part_file import PartFile
    from dual_cross_attention.inference.row_files import SUFFIXES, check_suffix
    from dual_cross_attention.inference.streaming import write_stream

    is_file = options.output not in (None, "-")
    if is_file:
        check_writable("output", options.output)
        check_suffix(Path(options.output), SUFFIXES)
    images = find_inputs(options.images, console)
    model, arguments = open_model(options)
    if model.task == "reid":
        raise InputError(
            f"'{options.model}' is a re-identification model, which knows its training identities only: take dcal embed"
        )
    arguments["top_k"] = options.top_k
    if not is_file:
        predictions = model.predict(images.paths, **arguments)
        if options.output == "-":
            return _print_lines(predictions)
        return _print_table(predictions, model.labels, model.calibration is not None)
    output = Path(options.output)
    calibration = model.calibration and json.loads(model.calibration.to_json())
    part = PartFile(
        output,
        part_settings("predict", model, options, top_k=options.top_k, calibration=calibration),
        options.resume,
    )
    width = min(options.top_k, len(model.labels))
    written = write_stream(
        part,
        images.paths,
        images.total,
        lambda paths: model.predict(paths, **arguments),
        files.as_row,
        lambda temporary, rows: files.write_predictions(temporary, rows, output.suffix.lower(), width),
        "predict",
        console,
    )
    return report(written, output, console)


def _print_lines(predictions: Iterable["Prediction"]) -> int:
    from dual_cross_attention.inference.prediction_files import as_row
    from dual_cross_attention.inference.row_files import as_line

    status = 0
    for prediction in predictions:
        print(as_line(as_row(prediction)), flush=True)
        status = 1 if prediction.error else status
    return status


def _print_table(predictions: Iterable["Prediction"], labels: list[str], is_calibrated: bool) -> int:
    """Row by row, as they come: image, class, probability, known or unknown if calibrated, and the further classes."""
    known_head = f"{'known':9}" if is_calibrated else ""
    status, paths = 0, 0
    label_width = min(WIDEST, max(len(escape(label)) for label in labels))
    for prediction in predictions:
        path = escape(prediction.path)
        if not paths:
            paths = min(WIDEST, max(len(path), len("image")))
            print(f"{'image':{paths}}  {'class':{label_width}}  probability  {known_head}next")
        if prediction.error:
            status = 1
            print(f"{path:{paths}}  cannot be read: {prediction.error}", flush=True)
            continue
        further = ", ".join(f"{escape(label)} {100 * value:.1f} %" for label, value in prediction.top[1:])
        known = f"{'yes' if prediction.known else 'unknown':9}" if is_calibrated else ""
        print(
            f"{path:{paths}}  {escape(prediction.label):{label_width}}  {100 * prediction.probability:9.1f} %  "
            f"{known}{further}",
            flush=True,
        )
    return status
