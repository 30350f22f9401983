"""What this project promises of time and memory, and what this machine says to it: one table.

    python -m benchmarks.targets --device cpu
    python -m benchmarks.targets --device cuda

Every number is that of another benchmark, run as a command of its own; one that fails leaves its error in the table,
and the other rows alone. The benchmarks' own tables go to the standard error stream as they come.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import format_value, table, truth, write_json

Numbers = dict[str, Any]  # what a benchmark writes with --json
Read = Callable[[Numbers], float]


@dataclass(frozen=True)
class Target:
    """A promise.

    Args:
        what: is measured, in words.
        limit: the most that keeps it; or the least, with `at_least`.
        read: gets the number out of what the benchmark wrote.
        unit: of the number.
    """

    what: str
    limit: float
    read: Read
    unit: str = ""
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}".rstrip()

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Measurement:
    """One command, and the promises that it tells of.

    Args:
        where: the setting, in words.
        command: a benchmark and its flags, but for --device and --json.
        targets: what to read from it.
    """

    where: str
    command: str
    targets: list[Target]


def cell(row: str, column: str, scale: float = 1.0) -> Read:
    """Reads a cell of the benchmark's table."""
    return lambda numbers: scale * numbers["rows"][row][column]


def ratio(row: str, to: str, column: str = "ms") -> Read:
    """Reads a column's ratio between two rows."""
    return lambda numbers: numbers["rows"][row][column] / numbers["rows"][to][column]


def predict_ratio(row: str) -> Read:
    """Reads the time of `predict` over timm's, of the one batch size there is."""
    return lambda numbers: next(iter(numbers["batch_sizes"].values()))[row]["time / timm"]


def rollout_cell(heads: int, column: str) -> Read:
    """Reads a cell of `benchmarks.rollout`, of the one number of tokens there is."""
    return lambda numbers: next(
        row[column] for name, row in numbers["rows"].items() if name.endswith(f", {heads} heads")
    )


DEIT, VIT_B = "--backbone deit_tiny_patch16_224", "--backbone vit_base_patch16_224"
GIB = 1 / 1024  # from MiB

ON_CPU = [
    Measurement(
        "DeiT-Tiny/448, batch 4",
        f"train_step {DEIT} --batch_size 4 --rows timm full textbook",
        [
            Target("step, `full` / timm", 2.3, ratio("full", "timm")),
            Target("step, `textbook` / `full`", 1.6, ratio("textbook", "full"), at_least=True),
            Target("peak memory, `full` / `textbook`", 0.5, ratio("full", "textbook", "peak MiB")),
        ],
    ),
    Measurement(
        "DeiT-Tiny/448, batch 4",
        f"inference {DEIT} --batch_sizes 4 --repeats 15 --memory false",
        [
            Target("`predict`, both / timm", 1.2, predict_ratio("both")),
            Target("`predict`, sa / timm", 0.97, predict_ratio("sa")),
        ],
    ),
    Measurement(
        "ViT-B/448, batch 2",
        f"train_step {VIT_B} --batch_size 2 --rows timm full --memory false",
        [Target("step, `full` / timm", 2.1, ratio("full", "timm"))],
    ),
    Measurement(
        "ViT-B/448, batch 2",
        f"inference {VIT_B} --batch_sizes 2 --memory false",
        [Target("`predict`, both / timm", 1.08, predict_ratio("both"))],
    ),
    Measurement(
        "N = 1,025, 12 layers",
        "rollout --heads 3 12 --repeats 15 --tokens 1025",
        [
            Target("matrix product / rollout, 3 heads", 3, rollout_cell(3, "product / rollout"), at_least=True),
            Target("matrix product / rollout, 12 heads", 1.6, rollout_cell(12, "product / rollout"), at_least=True),
            Target("memory, rollout / product, 3 heads", 0.1, rollout_cell(3, "memory rollout / product")),
            Target("memory, rollout / product, 12 heads", 0.1, rollout_cell(12, "memory rollout / product")),
        ],
    ),
]

H200 = "ViT-B/448, batch 16, bf16"
ON_CUDA = [
    Measurement(
        H200,
        f"train_step {VIT_B} --batch_size 16 --rows full",
        [Target("peak memory", 12, cell("full", "peak MiB", GIB), "GiB")],
    ),
    Measurement(
        f"{H200}, checkpointing",
        f"train_step {VIT_B} --batch_size 16 --use_gradient_checkpointing true --rows full",
        [Target("peak memory", 6, cell("full", "peak MiB", GIB), "GiB")],
    ),
    Measurement(
        f"{H200}, compiled",
        f"train_step {VIT_B} --batch_size 16 --compile true --repeats 20 --memory false --rows sa_only full",
        [
            Target("step, `full` / `sa_only`", 2.1, ratio("full", "sa_only")),
            Target("FLOP/s of a large matrix product", 45, cell("full", "% of matmul"), "%", at_least=True),
            Target("rollout's share of a step", 3, lambda numbers: numbers["rollout_percent"], "%"),
        ],
    ),
    Measurement(
        H200,
        f"epoch {VIT_B} --batch_size 16",
        [Target("epoch of 5,994 JPEGs", 25, cell("epoch", "seconds"), "s")],
    ),
    Measurement(
        "DeiT-Tiny/448, batch 16, bf16",
        f"epoch {DEIT} --batch_size 16",
        [Target("epoch of 5,994 JPEGs", 8, cell("epoch", "seconds"), "s")],
    ),
    Measurement(
        "ViT-B/448, batch 16, fp16, 15 GiB",
        f"small_card {VIT_B} --batch_size 16 --precision fp16 --gib 15 --steps 500",
        [Target("500 steps, peak since step 10", 1, cell("full", "MiB more than at step 10"), "MiB more")],
    ),
]

MEASUREMENTS = {"cpu": ON_CPU, "cuda": ON_CUDA}
# Behind the flags of a benchmark, these make it a matter of seconds: to see that all of it runs.
TINY = f"{DEIT} --img_size 64 --precision auto"
TINY_FLAGS = {
    "train_step": f"{TINY} --batch_size 2 --repeats 1",
    "inference": f"{TINY} --repeats 1",
    "rollout": "--repeats 1 --tokens 197",
    "epoch": f"{TINY} --batch_size 2 --images 8",
    "small_card": f"{TINY} --batch_size 2 --steps 11",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True, choices=("cpu", "cuda"))
    parser.add_argument("--targets", choices=MEASUREMENTS, help="those of another device, measured on this one")
    parser.add_argument("--tiny", type=truth, default=False, help="true: tiny models; the numbers then mean nothing")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args(arguments)

    lines, outcomes = [], {}
    for measurement in MEASUREMENTS[given.targets or given.device]:
        words = measurement.command.split()
        if given.tiny:
            words += TINY_FLAGS[words[0]].split()
        outcomes[measurement.command] = run([*words, "--device", given.device])
        lines += judge(measurement, outcomes[measurement.command])
    rows = {f"{index}": line for index, line in enumerate(lines, start=1)}
    print(table(rows, "№"))
    write_json(given.json, rows=rows, benchmarks=outcomes)
    return 0


def run(words: Sequence[str]) -> Numbers | str:
    """What a benchmark wrote; or, if it failed, the last line of what it said."""
    name, *flags = words
    print(f"== python -m benchmarks.{' '.join(words)}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / "numbers.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags, "--json", str(written)]
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return json.loads(written.read_text())
    print(done.stderr, file=sys.stderr)
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"ended with status {done.returncode}"


def judge(measurement: Measurement, numbers: Numbers | str) -> list[dict[str, str]]:
    """A line of the table for every target."""
    lines = []
    for target in measurement.targets:
        if isinstance(numbers, str):
            measured, met = f"failed: {numbers[:120]}".replace("|", "/"), "no"
        else:
            value = target.read(numbers)
            measured, met = f"{format_value(value)} {target.unit}".rstrip(), "yes" if target.is_met(value) else "**no**"
        lines.append(
            {"where": measurement.where, "what": target.what, "target": f"{target}", "measured": measured, "met": met}
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
