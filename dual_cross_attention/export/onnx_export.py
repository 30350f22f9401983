"""Writes a model as one ONNX file that states what is needed to use it, after a comparison with PyTorch."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.attention.rollout import attention_weights
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.errors import InputError
from dual_cross_attention.export.gate import Comparison, compare
from dual_cross_attention.export.graph import InferenceGraph, trace_graph
from dual_cross_attention.inference.calibration import TOGETHER
from dual_cross_attention.inference.calibrations import AnyCalibration
from dual_cross_attention.inference.fingerprint import digest_weights
from dual_cross_attention.inference.model_card import starting_license
from dual_cross_attention.inference.model_files import SavedModel, header_of
from dual_cross_attention.inference.onnx_files import import_onnx, read_onnx
from dual_cross_attention.inference.onnx_model import INPUT
from dual_cross_attention.inference.pretrained_directory import without_paths
from dual_cross_attention.inference.reid_calibration import HeldOut

OPSET = 20
"""Of the ONNX operators. Attention of opset 23 was no faster in ONNX Runtime."""
EXPORT_FORMAT = 1
"""Of the metadata entry "export"."""


def make_proto(saved: SavedModel, branches: list[str]) -> Any:
    """The `onnx.ModelProto` of a model's branches in float32, without metadata; the batch size is symbolic.

    Args:
        saved: on CPU, in evaluation mode.
        branches: the exported ones, "sa" first.

    Raises:
        InputError: a library is missing, or the model cannot be traced.
    """
    import_onnx("onnx")
    import_onnx("onnxscript")
    graph = InferenceGraph(saved, branches).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about PyTorch's own tracing
            program = trace_graph(graph, (saved.config.img_size[0], saved.config.img_size[1]))
            converted = torch.onnx.export(
                share_attention_weights(program),
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=graph.output_names,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch.export and the converter raise many types
        reason = " ".join(str(error).split())
        raise InputError(f"backbone '{saved.config.backbone}' cannot be exported to ONNX: {reason:.300}") from error
    proto = converted.model_proto
    _name_batch(proto)
    return proto


def share_attention_weights(program: ExportedProgram) -> ExportedProgram:
    """A program whose attention is written as rollout writes it, so that ONNX Runtime computes the weights of a layer
    once for both. It finds equal nodes when it loads a graph."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention_weights(query, key) @ value

    return program.run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: attend})


def _name_batch(proto: Any) -> None:
    """Calls the symbolic batch size "batch" in inputs and outputs; the tracer numbers it."""
    for value in [*proto.graph.input, *proto.graph.output]:
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_param:
            first.dim_param = "batch"
    del proto.graph.value_info[:]  # shapes of intermediate values, with the old name
    del proto.metadata_props[:]
    for node in proto.graph.node:  # stack traces with paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    for named in [*proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del named.metadata_props[:]
    del proto.graph.metadata_props[:]


def metadata_of(saved: SavedModel, branches: list[str], dtype: str, check: dict[str, Any] | None) -> dict[str, str]:
    """The metadata of a file: the header of a model file, and "export".

    Args:
        saved, branches: as of `make_proto`.
        dtype: of the weights.
        check: results of the gate; None while it has not run.
    """
    config = without_paths(saved.config)
    calibration = calibration_of(saved, branches)
    header = header_of(
        Path("model"),
        config,
        saved.classes,
        saved.metrics,
        saved.data,
        saved.preprocessing,
        calibration,
        saved.chosen_by,
    )
    license_, license_line = starting_license(config)  # the name of a weights file, without its folder
    export = {
        "format": EXPORT_FORMAT,
        "branches": branches,
        "dtype": dtype,
        "opset": OPSET,
        "preprocess": preprocess_steps(saved.preprocessing),
        "source_weights": digest_weights(saved.model.state_dict()),
        "license": license_,
        "license_note": license_line,
        "check": check,
    }
    return header | {"export": json.dumps(export, ensure_ascii=False)}


def preprocess_steps(preprocessing: Preprocessing) -> list[str]:
    """The steps from an image file to the input of the graph, in words; the numbers are in "preprocessing"."""
    (height, width), (crop_height, crop_width) = preprocessing.resize, preprocessing.img_size
    crop = [f"crop the center to the aspect ratio {width}:{height} (width:height)"] if preprocessing.keep_aspect else []
    kept = "" if preprocessing.keep_aspect else "; the aspect ratio is not kept"
    return [
        "decode, apply the EXIF orientation, convert to RGB",
        *crop,
        f"resize to {width} x {height} (width x height), {preprocessing.interpolation} with antialiasing{kept}",
        f"crop {crop_width} x {crop_height} at the center",
        "divide by 255, subtract mean, divide by std, per channel; NCHW float32",
    ]


def calibration_of(saved: SavedModel, branches: list[str]) -> AnyCalibration | None:
    """The calibration of a graph with these branches.

    In a graph of one branch, that branch's calibration is the joint one too. What a classifier's was measured on images
    that it was not fitted on is left out then: the share of known images was measured of the joint answer alone.
    """
    calibration = saved.calibration
    if calibration is None or branches == saved.model.test_branches:
        return calibration
    (branch,) = branches
    joint = TOGETHER if branches == saved.model.predicting_branches else branch
    names, held_out = {TOGETHER: joint, branch: branch}, calibration.held_out
    if isinstance(held_out, HeldOut):
        held_out = replace(held_out, answers={name: held_out.answers[source] for name, source in names.items()})
    elif joint != TOGETHER:
        held_out = None
    answers = {name: calibration.answers[source] for name, source in names.items()}
    return replace(calibration, answers=answers, held_out=held_out)


def set_metadata(proto: Any, metadata: dict[str, str]) -> None:
    """Replaces the metadata of a model."""
    import_onnx("onnx").helper.set_model_props(proto, metadata)


def export_fp32(saved: SavedModel, branches: list[str], target: Path, images: list, images_are: str) -> Comparison:
    """Writes a float32 file, if it computes what PyTorch does.

    Args:
        saved, branches: as of `make_proto`.
        target: the file, which is replaced when the comparison has passed.
        images: that are compared.
        images_are: what they are, for the metadata.

    Raises:
        InputError: the comparison fails, or the file cannot be written.
    """
    return write_checked(make_proto(saved, branches), saved, branches, target, images, images_are)


def write_checked(
    proto: Any, saved: SavedModel, branches: list[str], target: Path, images: list, images_are: str
) -> Comparison:
    """Writes a float32 graph with its metadata, compares the file with PyTorch, and gives it its name.

    Arguments and errors as of `export_fp32`.
    """
    try:
        with atomic_write(target) as temporary:
            set_metadata(proto, metadata_of(saved, branches, "fp32", None))
            temporary.write_bytes(proto.SerializeToString())
            result = compare(with_calibration_of(saved, branches), branches, read_onnx(temporary), images)
            result.check()
            set_metadata(proto, metadata_of(saved, branches, "fp32", result.to_json() | {"images_are": images_are}))
            temporary.write_bytes(proto.SerializeToString())
            read_onnx(temporary)
    except OSError as error:
        raise InputError(f"cannot write '{target}': {error.strerror or error}") from error
    return result


def with_calibration_of(saved: SavedModel, branches: list[str]) -> SavedModel:
    """The model with the calibration that its exported graph has."""
    return replace(saved, calibration=calibration_of(saved, branches))
