"""Reads exported ONNX files, which are untrusted: one file without external data, with the header of a model file.

The metadata of the file (`metadata_props`) has the entries that the header of a model file has, and "export", JSON with
"branches", "dtype", "preprocess" and the results of the check against PyTorch ("check").
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.model_files import ModelFile, SavedModel, read_header
from dual_cross_attention.inference.onnx_model import INPUT, OnnxModel, output_names
from dual_cross_attention.text import escape, short_repr
from dual_cross_attention.untrusted_files import open_regular

SUFFIX = ".onnx"
MAX_BYTES = 2**31 - 1
"""Of a file: the limit of protobuf."""
DTYPES = ("fp32", "fp16", "int8")
OWN_DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Operator sets that ONNX Runtime implements itself; others would need a library that the file names."""
BRANCHES = (["sa"], ["glca"], ["sa", "glca"])


def import_onnx(name: str) -> Any:
    """Imports "onnx", "onnxruntime", or a module of them.

    Raises:
        InputError: it is not installed; the message names the extra.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"ONNX files need {name.partition('.')[0]}: pip install 'dual-cross-attention[export]' ({error})"
        ) from error


def read_onnx(path: Path) -> SavedModel:
    """Reads an exported model, to be run on the CPU.

    Raises:
        InputError: it is not a file that `dcal export` wrote, or it refers to other files.
    """
    onnx = import_onnx("onnx")
    source = f"'{path}'"
    content = _read_bytes(path)
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf, by implementation
        raise InputError(f"cannot read {source} as ONNX: {' '.join(str(error).split()):.200}") from error
    check_self_contained(proto, source)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if "export" not in metadata:
        raise InputError(f"{source} holds no settings and labels: expected a file of dcal export --format onnx")
    header = read_header(metadata, {}, path)
    branches, dtype, source_digest = _export_entry(metadata["export"], source)
    digests = hashlib.blake2b(content, digest_size=16).hexdigest(), source_digest
    model = _model(start_session(content, source), header, branches, dtype, digests, source)
    if header.preprocessing is None:
        raise InputError(f"{source} holds no preprocessing: expected a file of dcal export --format onnx")
    if header.calibration:
        header.calibration.check_fits(branches, branches, f"the metadata of {source}")
    return SavedModel(
        model.eval(),
        header.config,
        header.classes,
        header.metrics,
        header.data,
        header.preprocessing,
        header.calibration,
        header.chosen_by,
    )


def start_session(content: bytes, source: str) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, with as many threads as PyTorch uses.

    Raises:
        InputError: ONNX Runtime refuses the graph.
    """
    runtime = import_onnx("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # warnings are about optimizations
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of ONNX Runtime's own types, which have no common base
        raise InputError(f"ONNX Runtime cannot run {source}: {' '.join(str(error).split()):.300}") from error


def check_self_contained(proto: Any, source: str) -> None:
    """Checks an `onnx.ModelProto` before ONNX Runtime sees it.

    Raises:
        InputError: tensors in other files, tensors that announce more values than they hold, or operators that are
            not ONNX Runtime's own.
    """
    onnx = import_onnx("onnx")
    for opset in proto.opset_import:
        if opset.domain not in OWN_DOMAINS:
            raise InputError(f"{source}: expected ONNX operators, got the domain {short_repr(opset.domain)}")
    for tensor in _tensors(proto):
        name = escape(tensor.name)
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(f"{source}: the tensor {name:.80} is in another file: expected one file with all weights")
        try:
            size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        except KeyError as error:
            raise InputError(f"{source}: the tensor {name:.80} has an unknown type") from error
        announced = math.prod(tensor.dims)
        if tensor.raw_data and announced * size != len(tensor.raw_data):
            raise InputError(
                f"{source}: the tensor {name:.80} announces {announced:,} values and holds {len(tensor.raw_data):,} "
                "bytes: the file is damaged"
            )
        if announced < 0 or (not tensor.raw_data and announced > tensor.ByteSize()):  # a value takes a byte at least
            raise InputError(
                f"{source}: the tensor {name:.80} announces {announced:,} values, which it does not hold: the file is "
                "damaged"
            )


def _tensors(proto: Any) -> Iterator[Any]:
    """All tensors of a model: of its graph, of graphs in attributes, and of functions."""
    nodes, graphs = [node for function in proto.functions for node in function.node], [proto.graph]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes.extend(graph.node)
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            continue
        for attribute in nodes.pop().attribute:
            graphs.extend([*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])])
            yield from [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for sparse in [*attribute.sparse_tensors, *single]:
                yield from (sparse.values, sparse.indices)


def _read_bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read() if size <= MAX_BYTES else b""
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from error
    if size > MAX_BYTES:
        raise InputError(f"cannot read '{path}' as ONNX: expected at most {MAX_BYTES:,} bytes, got {size:,}")
    return content


def _export_entry(text: str, source: str) -> tuple[list[str], str, str | None]:
    """Branches, dtype, and of float32 the digest of the weights that were exported."""
    try:
        read = json.loads(text)
        branches, dtype = read["branches"], read["dtype"]
        digest = read.get("source_weights") if dtype == "fp32" else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{source}: the metadata 'export' cannot be read ({type(error).__name__})") from error
    if branches not in BRANCHES or dtype not in DTYPES:
        raise InputError(
            f"{source}: expected branches of {' or '.join(map(str, BRANCHES))} and a dtype of {', '.join(DTYPES)}, got "
            f"{short_repr(branches)} and {short_repr(dtype)}"
        )
    return branches, dtype, digest if isinstance(digest, str) else None


def _model(
    session: Any,
    header: ModelFile,
    branches: list[str],
    dtype: str,
    digests: tuple[str, str | None],
    source: str,
) -> OnnxModel:
    """Compares inputs and outputs of a graph with its metadata."""
    task, classes = header.config.task, len(header.classes)
    inputs = [(each.name, each.type, each.shape) for each in session.get_inputs()]
    size = [3, *header.config.img_size]
    fits = len(inputs) == 1 and inputs[0][:2] == (INPUT, "tensor(float)") and inputs[0][2][1:] == size
    if not fits or not isinstance(inputs[0][2][0], str):  # a name, else the batch is fixed
        raise InputError(f"{source}: expected an input {INPUT} of (batch, {size}) float32, got {short_repr(inputs)}")
    shapes = {each.name: (each.type, each.shape) for each in session.get_outputs()}
    if list(shapes) not in [output_names(task, branches, has_local) for has_local in (False, True)]:
        raise InputError(f"{source}: unexpected outputs {short_repr(list(shapes))}")
    widths = {each[1][1] for name, each in shapes.items() if name.startswith("feature_")}
    width = widths.pop()
    expected = {
        "embedding": len(branches) * width if isinstance(width, int) else None,
        "probabilities": classes,
        **{f"logits_{branch}": classes for branch in branches},
        **{f"feature_{branch}": width for branch in branches},
    }
    for name, (kind, shape) in shapes.items():
        is_float = kind == ("tensor(int64)" if name == "local" else "tensor(float)")
        if not is_float or len(shape) != 2 or not isinstance(shape[0], str) or shape[1] != expected.get(name, shape[1]):
            raise InputError(f"{source}: the output {name} is {kind} {shape}, which does not fit the metadata")
    return OnnxModel(session, branches, classes, width, dtype, *digests)
