"""A model as a program of `torch.export`, for `torch.export.load`. Such a file can hold code."""

import json
import warnings
from pathlib import Path

import torch

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.errors import InputError
from dual_cross_attention.export.graph import InferenceGraph, trace_graph
from dual_cross_attention.export.onnx_export import metadata_of
from dual_cross_attention.inference.model_files import SavedModel


def write_program(saved: SavedModel, branches: list[str], target: Path) -> list[str]:
    """Writes a .pt2 file, with the metadata of an ONNX file in the extra file "metadata.json".

    Raises:
        InputError: the model cannot be traced, or the file cannot be written.
    """
    graph = InferenceGraph(saved, branches).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about PyTorch's own tracing
            program = trace_graph(graph, (saved.config.img_size[0], saved.config.img_size[1]))
    except Exception as error:  # torch.export raises many types
        reason = " ".join(str(error).split())
        raise InputError(f"backbone '{saved.config.backbone}' cannot be traced: {reason:.300}") from error
    metadata = metadata_of(saved, branches, "fp32", None) | {"outputs": json.dumps(graph.output_names)}
    try:
        with atomic_write(target) as temporary, temporary.open("wb") as file:
            torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    except OSError as error:
        raise InputError(f"cannot write '{target}': {error.strerror or error}") from error
    return [f"outputs: {', '.join(graph.output_names)}", "a .pt2 file can hold code: load only files that you trust"]
