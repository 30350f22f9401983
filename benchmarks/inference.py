"""`predict` of SA, GLCA and both, against timm's own forward and softmax.

    python -m benchmarks.inference --img_size 448 --batch_sizes 1 32
    OMP_NUM_THREADS=1 python -m benchmarks.inference --onnx true --device cpu --memory false --batch_sizes 1 8

A table for each batch size; FLOPs as in `benchmarks.train_step`. With `--onnx true`, also the graphs that `dcal export`
writes of both branches and of SA alone, and timm's plain model with its softmax, in ONNX Runtime on as many threads, in
float32 whatever `--precision` is; "time / timm in ONNX Runtime" compares these with each other.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import (
    Function,
    add_flags,
    add_model_flags,
    add_timing_flags,
    autocast,
    chosen_device,
    count_flops,
    describe_machine,
    describe_model,
    peak_above_idle,
    synchronize,
    table,
    time_in_turns,
    truth,
    write_json,
)
from benchmarks.train_step import compile_model, timm_model
from dual_cross_attention import create_model
from dual_cross_attention.configs.fgvc_config import FGVCConfig
from dual_cross_attention.configs.training_config import sides
from dual_cross_attention.devices import keep_freed_memory
from dual_cross_attention.export.onnx_export import OPSET, make_proto
from dual_cross_attention.inference.model_files import read_model, save_model
from dual_cross_attention.inference.onnx_files import start_session
from dual_cross_attention.models import DualCrossAttentionViT

BRANCHES = {"sa": "sa", "glca": "glca", "both": None}  # rows, and the branch that `predict` takes
PLAIN_ONNX = "timm, ONNX Runtime"
ONNX_ROWS = {PLAIN_ONNX: None, "sa, ONNX Runtime": ["sa"], "both, ONNX Runtime": ["sa", "glca"]}
WARMUP = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    add_timing_flags(parser)
    add_model_flags(parser)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--onnx", type=truth, default=False, help="also exported graphs in ONNX Runtime, on the CPU")
    given = parser.parse_args(arguments)

    keep_freed_memory()
    device, dtype = chosen_device(given)
    memory = {
        (size, row): peak_above_idle(device, run_predictions, row, size, given) if given.memory else None
        for size in given.batch_sizes
        for row in ("timm", *BRANCHES)
    }
    ours = our_model(given, device)
    models = {"timm": timm_model(given).to(device).eval()} | dict.fromkeys(BRANCHES, ours)
    functions = {
        size: {row: prediction(model, row, size, given) for row, model in models.items()} for size in given.batch_sizes
    }
    flops = {size: {row: count_flops(predict) for row, predict in own.items()} for size, own in functions.items()}
    if given.compile:
        for model in (models["timm"], ours):
            compile_model(model)
    if given.onnx:
        sessions = onnx_sessions(given, models["timm"], ours)
        for size, own in functions.items():
            own.update({row: onnx_prediction(session, size, given) for row, session in sessions.items()})
    setting = f"{describe_model(given)}; {describe_machine(device, dtype)}; median of {given.repeats}"
    print(setting)
    tables = {}
    for size in given.batch_sizes:
        seconds = time_in_turns(functions[size], device, given.repeats, WARMUP)
        tables[size] = {
            row: {
                "ms": 1e3 * seconds[row],
                "images/s": size / seconds[row],
                "time / timm": seconds[row] / seconds["timm"],
                "FLOPs / timm": flops[size][row] / flops[size]["timm"] if row in models else None,
                "peak MiB": memory.get((size, row)),
            }
            | (
                {"time / timm in ONNX Runtime": seconds[row] / seconds[PLAIN_ONNX] if row in ONNX_ROWS else None}
                if given.onnx
                else {}
            )
            for row in seconds
        }
        print(f"\n{table(tables[size], f'batch {size}')}", flush=True)
    write_json(given.json, setting=setting, batch_sizes=tables)
    return 0


def our_model(given: argparse.Namespace, device: torch.device) -> DualCrossAttentionViT:
    """A model with both branches of inference."""
    model = create_model(given.backbone, given.num_classes, img_size=tuple(sides("img_size", given.img_size)))
    return model.to(device).eval()


def prediction(model: nn.Module, row: str, size: int, given: argparse.Namespace) -> Function:
    """A function that predicts the classes of `size` random images, always the same."""
    device, dtype = chosen_device(given)
    images = torch.randn(size, 3, *sides("img_size", given.img_size), device=device)

    @torch.no_grad()
    @autocast(device, dtype)
    def predict() -> Tensor:
        if row == "timm":
            return model(images).float().softmax(dim=-1)
        return model.predict(images, BRANCHES[row])

    return predict


def onnx_sessions(given: argparse.Namespace, plain: nn.Module, ours: DualCrossAttentionViT) -> dict[str, Any]:
    """ONNX Runtime's sessions by row; the graphs of ours are those of `dcal export`."""
    height, width = sides("img_size", given.img_size)
    config = FGVCConfig(backbone=given.backbone, img_size=[height, width], weights="none", glca_init="random")
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        state = {name: value.cpu() for name, value in ours.state_dict().items()}
        save_model(path, state, config, [f"{n}" for n in range(given.num_classes)], {"epoch": 1.0})
        saved = read_model(path)
    for row, branches in ONNX_ROWS.items():
        if branches is None:
            batch = {0: torch.export.Dim("batch", min=1)}
            images = (torch.zeros(2, 3, height, width),)
            program = torch.export.export(nn.Sequential(plain, nn.Softmax(dim=-1)), images, dynamic_shapes=(batch,))
            proto = torch.onnx.export(program, opset_version=OPSET, dynamo=True, verbose=False).model_proto
        else:
            proto = make_proto(saved, branches)
        sessions[row] = start_session(proto.SerializeToString(), row)
    return sessions


def onnx_prediction(session: Any, size: int, given: argparse.Namespace) -> Function:
    """A function that runs all outputs of a graph on `size` random images, always the same."""
    images = torch.randn(size, 3, *sides("img_size", given.img_size)).numpy()
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})


def run_predictions(row: str, size: int, given: argparse.Namespace) -> None:
    """As many predictions as it takes to reach the peak of memory."""
    device, _ = chosen_device(given)
    model = timm_model(given).to(device).eval() if row == "timm" else our_model(given, device)
    if given.compile:
        compile_model(model)
    predict = prediction(model, row, size, given)
    for _ in range(WARMUP):
        predict()
    synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
