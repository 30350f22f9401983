"""Time and peak memory of attention rollout: CLS's row alone (`attention_rollout`) against the literal matrix product.

    python -m benchmarks.rollout --tokens 197 785 1025 --heads 3 12

Random queries and keys, views of fused projections as a timm block has them. Both are timed in turn in one process, so
that other work on the machine meets both; medians are compared. Memory is what one call adds to the peak of a process
that has so far made its inputs only: resident memory on the CPU, PyTorch's on a GPU.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MIB = 2**20


def main() -> int:
    """Measure every size in fresh processes, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the inputs")
    parser.add_argument("--tokens", type=int, nargs="+", default=[197, 577, 785, 1025, 2305, 4097])
    parser.add_argument("--heads", type=int, nargs="+", default=[3, 12])
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--here", choices=("time", *VARIANTS), help=argparse.SUPPRESS)  # a fresh process: one number
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure_time(given) if given.here == "time" else measure_memory(given)))
        return 0

    print(f"| tokens | heads | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 2)}")
    rows = []
    for heads in given.heads:
        for tokens in given.tokens:
            row = measure(tokens, heads)
            rows.append({"tokens": tokens, "heads": heads, **row})
            print(f"| {tokens} | {heads} | {' | '.join(form.format(row[key]) for key, form in COLUMNS.items())} |")
    if given.json:
        settings = {key: value for key, value in vars(given).items() if key not in ("json", "here", "tokens", "heads")}
        given.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    return 0


COLUMNS = {
    "product ms": "{:.1f}",
    "rollout ms": "{:.1f}",
    "product / rollout": "{:.2f}",
    "product MiB": "{:.1f}",
    "rollout MiB": "{:.1f}",
    "memory rollout / product": "{:.3f}",
}


def measure(tokens: int, heads: int) -> dict[str, float]:
    """One row of the table. Of the flags, given as they came, the last --tokens and --heads count."""
    size = ["--tokens", str(tokens), "--heads", str(heads)]
    command = [sys.executable, "-m", "benchmarks.rollout", *sys.argv[1:], *size]
    numbers = {}
    for part in ("time", *VARIANTS):
        done = subprocess.run([*command, "--here", part], check=True, stdout=subprocess.PIPE, text=True)
        numbers |= json.loads(done.stdout)
    numbers["product / rollout"] = numbers["product ms"] / numbers["rollout ms"]
    numbers["memory rollout / product"] = numbers["rollout MiB"] / numbers["product MiB"]
    return numbers


def measure_time(given: argparse.Namespace) -> dict[str, float]:
    """Medians over the repeats, the variants in turn; both must agree."""
    import torch  # only in the fresh processes: a child's peak memory starts from its parent's

    queries, keys = inputs(given, given.tokens[0])
    first = {name: variant(queries, keys) for name, variant in VARIANTS.items()}  # also warms up
    torch.testing.assert_close(first["rollout"], first["product"], atol=1e-4, rtol=0)
    times = {name: [] for name in VARIANTS}
    for _ in range(given.repeats):
        for name, variant in VARIANTS.items():
            synchronize(queries[0].device)
            start = time.perf_counter()
            variant(queries, keys)
            synchronize(queries[0].device)
            times[name].append(1000 * (time.perf_counter() - start))
    medians = {f"{name} ms": statistics.median(each) for name, each in times.items()}
    return {"threads": torch.get_num_threads(), "device": device_name(queries[0].device), **medians, "times ms": times}


def measure_memory(given: argparse.Namespace) -> dict[str, float]:
    """How far one call lifts the peak above what stood there with the inputs made."""
    import resource

    import torch

    variant = VARIANTS[given.here]
    variant(*inputs(given, 16))  # what the libraries take once, and keep, is not the method's
    queries, keys = inputs(given, given.tokens[0])
    device = queries[0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        variant(queries, keys)
        return {f"{given.here} MiB": (torch.cuda.max_memory_allocated(device) - before) / MIB}
    unit = MIB if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    variant(queries, keys)
    return {f"{given.here} MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit}


def inputs(given: argparse.Namespace, tokens: int) -> tuple[list, list]:
    """Queries and keys of every layer, each (B, heads, tokens, head_dim), without a copy of either."""
    import torch

    device = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    random = torch.Generator(device).manual_seed(0)
    shape = (given.batch_size, tokens, 3, given.heads[0], given.head_dim)
    options = {"generator": random, "device": device, "dtype": getattr(torch, given.dtype)}
    fused = [torch.randn(shape, **options).permute(2, 0, 3, 1, 4) for _ in range(given.layers)]
    return [qkv[0] for qkv in fused], [qkv[1] for qkv in fused]


def rollout(queries: list, keys: list):
    """Ours."""
    from dual_cross_attention import attention_rollout

    return attention_rollout(queries, keys)


def product(queries: list, keys: list):
    """The definition: every layer's attention matrix of all heads, their mean, and the product of all layers'."""
    import torch

    result = None
    for query, key in zip(queries, keys, strict=True):
        scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)
        attention = scores.softmax(-1, dtype=torch.float32).mean(1)
        mixed = 0.5 * attention + 0.5 * torch.eye(attention.shape[-1], device=attention.device)
        result = mixed if result is None else mixed @ result
    return result[:, 0]


VARIANTS: dict[str, Callable] = {"product": product, "rollout": rollout}


def synchronize(device) -> None:
    """Wait for the device's work to end."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device) -> str:
    """What the numbers were measured on."""
    import platform

    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
