"""What the benchmarks share: clocks, memory, FLOPs, the flags of all of them, and tables.

Notable:
- what is compared is timed in turns, and medians are taken, so that what else the machine does falls on all alike;
- memory is that of a fresh process, above what it held after the imports: a peak is never handed back.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from dual_cross_attention.devices import choose_device, choose_precision, keep_freed_memory, peak_memory_mb

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by Accelerate's names of precisions
for like in ("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward"):
    on_cpu = like.replace("attention", "attention_for_cpu")  # which PyTorch counts by itself from 2.15 on
    flop_registry.setdefault(getattr(torch.ops.aten, on_cpu), flop_registry[getattr(torch.ops.aten, like)])

Function = Callable[[], Any]
Rows = Mapping[str, Mapping[str, float | str | None]]  # row → column → value; None: not measured


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every benchmark."""
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--json", type=Path, help="write the numbers here")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of benchmarks of a whole model."""
    parser.add_argument("--backbone", default="deit_tiny_patch16_224")
    parser.add_argument("--img_size", type=int, nargs="+", default=[448], help="a side, or height and width")
    parser.add_argument("--num_classes", type=int, default=200)
    parser.add_argument("--compile", type=truth, default=False, help="our blocks one by one, timm's model whole")


def add_timing_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of benchmarks that compare rows."""
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each row, of which the median")
    parser.add_argument("--memory", type=truth, default=True, help="false: no memory, which takes a process a row")


def truth(word: str) -> bool:
    """ "true" or "false", as a flag's type."""
    if word not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {word!r}")
    return word == "true"


def chosen_device(given: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Where the flags say to compute, and in which dtype."""
    device = choose_device(given.device)
    return device, DTYPES[choose_precision(given.precision, device)]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision as in training; with float32, none."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that the clock reads its time and not the launch's."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def time_in_turns(
    functions: Mapping[str, Function], device: torch.device, repeats: int, warmup: int = 2
) -> dict[str, float]:
    """The median seconds of each function; all are called once a round, `warmup` rounds without a clock."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a process of its own; it can be imported, and arguments and result pickled."""
    # Not "spawn": on Linux, a process that this one starts by itself begins with this one's peak of memory.
    with ProcessPoolExecutor(1, get_context("forkserver")) as fresh:
        return fresh.submit(function, *arguments).result()


def peak_above_idle(device: torch.device, work: Callable[..., Any], *arguments: Any) -> float:
    """Peak memory of `work(*arguments)` in MiB, above that of an idle process, in a process of its own.

    Idle is after the imports. On a GPU memory is what PyTorch allocates, elsewhere the resident set.
    """
    return in_fresh_process(_peak_above_idle, device, work, arguments)


def _peak_above_idle(device: torch.device, work: Callable[..., Any], arguments: tuple) -> float:
    keep_freed_memory()
    idle = peak_memory_mb(device)
    work(*arguments)
    return peak_memory_mb(device) - idle


def count_flops(function: Function) -> int:
    """FLOPs of one call. It must not be compiled yet: what inductor makes is not counted."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype, repeats: int = 20) -> float:
    """What a large square matrix product reaches: the most that a model of matrix products could."""
    side = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / time_in_turns({"matmul": lambda: a @ b}, device, repeats)["matmul"]


def describe_machine(device: torch.device, dtype: torch.dtype) -> str:
    """The facts that a number is worth nothing without, in a line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    dtype_name = str(dtype).removeprefix("torch.")
    return f"{name}, {torch.get_num_threads()} CPU threads, {dtype_name}, PyTorch {torch.__version__}"


def describe_model(given: argparse.Namespace) -> str:
    """What the flags of `add_model_flags` say."""
    compiled = ", blocks (timm: the model) compiled" if given.compile else ""
    return f"{given.backbone} at {'x'.join(map(str, given.img_size))}{compiled}"


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(rows: Rows, first: str = "row") -> str:
    """Markdown: a line a row; `first` is the title of their names. Numbers have three digits."""
    columns = list(next(iter(rows.values())))
    lines = [[first, *columns], ["---"] * (1 + len(columns))]
    lines += [[f"`{name}`", *(format_value(row[column]) for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_value(value: float | str | None) -> str:
    """Three significant digits, or all before the point; – for what was not measured."""
    if value is None or isinstance(value, str):
        return value or "–"
    if isinstance(value, int):
        return f"{value:,}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{decimals}f}"


def write_json(path: Path | None, **content: Any) -> None:
    """The numbers of a table, where --json says to write them."""
    if path:
        path.write_text(json.dumps(content, indent=2) + "\n")
