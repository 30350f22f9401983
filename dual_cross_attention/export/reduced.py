"""Files with weights in float16 or int8, judged by what they cost in accuracy on labeled test images."""

import contextlib
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.errors import InputError
from dual_cross_attention.export.gate import check_answers
from dual_cross_attention.export.onnx_export import calibration_of, metadata_of, set_metadata
from dual_cross_attention.inference.evaluation import read_test_images
from dual_cross_attention.inference.evaluation_loop import run_eval_steps
from dual_cross_attention.inference.model_files import SavedModel
from dual_cross_attention.inference.onnx_files import import_onnx, read_onnx
from dual_cross_attention.progress import track
from dual_cross_attention.tasks.data_module import RunSetup

MAX_LOSS = 0.5
"""Of the accuracy of an exported float16 or int8 file, in percentage points."""
MEASURES = {"fgvc": {"top1": "top-1"}, "reid": {"mAP": "mAP", "rank1": "rank-1"}}
"""What is compared, by task: the name of the metric and its name in a line."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a model in PyTorch and of its exported file, in percent by metric, over the exported branches.

    Args:
        images: number of test images.
        images_are: what they are.
        pytorch, exported: by metric.
    """

    images: int
    images_are: str
    pytorch: dict[str, float]
    exported: dict[str, float]

    @property
    def loss(self) -> float:
        """The largest loss of a metric, in percentage points; below 0, the exported file is better."""
        return max(self.pytorch[name] - self.exported[name] for name in self.pytorch)

    def lines(self, task: str, max_loss: float) -> list[str]:
        """What was measured, for the screen."""
        measured = ", ".join(
            f"{title} {self.exported[name]:.2f} % (PyTorch, fp32: {self.pytorch[name]:.2f} %)"
            for name, title in MEASURES[task].items()
        )
        return [
            f"evaluated on {self.images:,} images ({self.images_are}): {measured}",
            f"loss {self.loss:.2f} points, limit {max_loss:g}",
        ]

    def to_json(self, max_loss: float) -> dict[str, Any]:
        """Values for the metadata of the file."""
        return {
            "passed": self.loss <= max_loss,
            "images": self.images,
            "images_are": self.images_are,
            "pytorch": self.pytorch,
            "exported": self.exported,
            "max_loss": max_loss,
        }


def read_labeled(saved: SavedModel, data_root: str | None) -> RunSetup:
    """The test split of the run's data; `data_root` as of `export_model`.

    Raises:
        InputError: it is not there.
    """
    try:
        return read_test_images(saved, {"data_root": data_root}, None, "refuse", Console(quiet=True))
    except InputError as error:
        raise InputError(
            f"--dtype fp16 and int8 are judged by the accuracy on the run's test images: {error}: give their folder by "
            "--data_root"
        ) from error


def export_reduced(
    proto: Any,
    saved: SavedModel,
    branches: list[str],
    target: Path,
    dtype: Literal["fp16", "int8"],
    setup: RunSetup,
    max_loss: float = MAX_LOSS,
    console: Console | None = None,
) -> Accuracy:
    """Converts the weights of a float32 graph, and writes the file if it is about as accurate as PyTorch in float32.

    Args:
        proto: of `make_proto`; it is converted in place.
        saved, branches: as of `make_proto`; "glca" and "sa" together predict as the model does.
        target: the file, which is replaced when the accuracy suffices.
        dtype: of the weights; the graph's input and outputs stay float32.
        setup: labeled test images, as `read_labeled` reads them.
        max_loss: largest loss of top-1, or of mAP and rank-1, in percentage points.
        console: shows progress and images that cannot be read.

    Raises:
        InputError: the loss is larger, labels or shapes differ, or the file cannot be written.
    """
    console = console or Console(quiet=True)
    task = saved.config.task
    expected = measure(saved, branches, setup, console, "evaluate PyTorch")
    proto = CONVERTERS[dtype](proto)
    images_are = f"test images of {setup.config.dataset}"
    try:
        with atomic_write(target) as temporary:
            set_metadata(proto, metadata_of(saved, branches, dtype, None))
            temporary.write_bytes(proto.SerializeToString())
            exported = read_onnx(temporary)
            check_answers(replace(saved, calibration=calibration_of(saved, branches)), exported)
            found = measure(exported, branches, setup, console, f"evaluate {dtype}")
            result = Accuracy(setup.num_test, images_are, expected, found)
            if not result.loss <= max_loss:
                measured = "; ".join(result.lines(task, max_loss))
                raise InputError(f"no file is written: {measured}: a larger --max_loss would accept it")
            set_metadata(proto, metadata_of(saved, branches, dtype, result.to_json(max_loss)))
            temporary.write_bytes(proto.SerializeToString())
    except OSError as error:
        raise InputError(f"cannot write '{target}': {error.strerror or error}") from error
    return result


def measure(saved: SavedModel, branches: list[str], setup: RunSetup, console: Console, title: str) -> dict[str, float]:
    """Metrics of `MEASURES` of a model's branches on CPU in float32, in percent; `title` is of the progress bar."""
    task = setup.build_task(saved.model)
    unreadable = UnreadableImages(lambda message: console.print(f"warning: {message}", style="yellow"))
    loader = setup.test_loader(saved.model, torch.device("cpu"))
    run_eval_steps(task, track(unreadable.watch(loader), title, len(loader), console))
    metrics = task.compute_metrics()
    suffix = "" if branches == saved.model.predicting_branches else f"_{branches[0]}"
    return {name: metrics[f"{name}{suffix}"] for name in MEASURES[setup.config.task]}


def to_float16(proto: Any) -> Any:
    """A graph that computes in float16, with float32 input and outputs."""
    converter = import_onnx("onnxruntime.transformers.float16")
    with _quiet_logs():
        return converter.convert_float_to_float16(proto, keep_io_types=True)


def to_int8(proto: Any) -> Any:
    """A graph whose matrix products with weights are in int8; activations are quantized batch by batch."""
    quantization = import_onnx("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder, _quiet_logs():
        file = Path(folder) / "int8.onnx"
        # Other operators, such as the convolution of the stem, have no fast int8 kernel.
        quantization.quantize_dynamic(proto, file, op_types_to_quantize=["MatMul", "Gemm"])
        return import_onnx("onnx").load(file)


CONVERTERS = {"fp16": to_float16, "int8": to_int8}


@contextlib.contextmanager
def _quiet_logs():
    """ONNX Runtime's tools log advice and every truncated weight through the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
