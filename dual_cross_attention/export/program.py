"""A model as a program of `torch.export`, for `torch.export.load`. Such a file can hold code."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.errors import InputError
from dual_cross_attention.export.gate import Comparison, compare
from dual_cross_attention.export.graph import InferenceGraph, trace_graph
from dual_cross_attention.export.onnx_export import metadata_of, with_calibration_of
from dual_cross_attention.inference.model_files import SavedModel, read_header

METADATA = "metadata.json"
"""Name of the extra file in a .pt2 file: the metadata of an ONNX file, and "outputs", the names of the outputs."""


class ProgramModel:
    """A loaded program behind the interface that `compare` needs."""

    def __init__(self, program: ExportedProgram, outputs: list[str]):
        self.module, self.outputs = program.module(), outputs

    @torch.no_grad()
    def run(self, images: Tensor) -> dict[str, np.ndarray]:
        """All outputs by name, of images (B, 3, H, W) float32, normalized."""
        return {name: value.numpy() for name, value in zip(self.outputs, self.module(images), strict=True)}


def make_program(saved: SavedModel, branches: list[str]) -> ExportedProgram:
    """The program of a model's branches; the batch size is symbolic.

    Raises:
        InputError: the model cannot be traced.
    """
    graph = InferenceGraph(saved, branches).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about PyTorch's own tracing
            return trace_graph(graph, (saved.config.img_size[0], saved.config.img_size[1]))
    except Exception as error:  # torch.export raises many types
        reason = " ".join(str(error).split())
        raise InputError(f"backbone '{saved.config.backbone}' cannot be traced: {reason:.300}") from error


def write_program(
    program: ExportedProgram, saved: SavedModel, branches: list[str], target: Path, images: list, images_are: str
) -> Comparison:
    """Writes a .pt2 file, loads it, compares it with PyTorch, and gives it its name.

    Args:
        program: of `make_program`.
        saved, branches: as of `make_program`.
        target: the file, which is replaced when the comparison has passed.
        images: that are compared.
        images_are: what they are, for the metadata.

    Raises:
        InputError: the comparison fails, or the file cannot be written.
    """
    outputs = InferenceGraph(saved, branches).output_names

    def save(check: dict[str, Any] | None, path: Path) -> None:
        metadata = metadata_of(saved, branches, "fp32", check) | {"outputs": json.dumps(outputs)}
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})

    try:
        with atomic_write(target) as temporary:
            save(None, temporary)
            result = compare(with_calibration_of(saved, branches), branches, read_program(temporary), images)
            result.check()
            save(result.to_json() | {"images_are": images_are}, temporary)
    except OSError as error:
        raise InputError(f"cannot write '{target}': {error.strerror or error}") from error
    return result


def read_program(path: Path) -> SavedModel:
    """Reads a .pt2 file that this process has written; one of others can hold code that is run."""
    extra_files = {METADATA: ""}
    with path.open("rb") as file:  # torch.export.load wants the suffix .pt2 of a path
        program = torch.export.load(file, extra_files=extra_files)
    metadata = json.loads(extra_files[METADATA])
    header = read_header(metadata, {}, path)
    model: Any = ProgramModel(program, json.loads(metadata["outputs"]))
    assert header.preprocessing is not None  # `metadata_of` writes it
    return SavedModel(
        model, header.config, header.classes, header.metrics, header.data, header.preprocessing, header.calibration
    )
