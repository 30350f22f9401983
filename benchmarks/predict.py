"""`dcal predict` as a whole command against timm's `inference.py`: images/s, time to the first answer, peak memory.

    python -m benchmarks.predict --images 2000 --repeats 3

Every number is of a fresh process, from its start to its end, imports included; the rows take turns. Images are JPEGs
of 500 x 375, generated once. timm's way is in `benchmarks.timm_inference`, on the same files and backbone weights, in
fp32. CPU seconds are of all processes of a command, and vary less than time where the machine has other work; memory
is the main process's, without workers.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.measure import describe_machine, table, write_json
from dual_cross_attention.configs import FGVCConfig
from dual_cross_attention.inference.model_files import build_model, save_model

COMMAND = [sys.executable, "-c", "import sys; from dual_cross_attention.cli import main; sys.exit(main())"]
IMPORTS = "import torch, timm; print('first', flush=True)"
WIDTH, HEIGHT = 500, 375
CLASSES = 200
DIFFERENT = 50
"""Images that are generated; the others are copies under other names."""


class Run(NamedTuple):
    """A command: seconds to its end, seconds to its first answer, seconds of CPU time, peak memory in MiB."""

    seconds: float
    first: float
    cpu: float
    memory: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224")
    parser.add_argument("--num_workers", type=int, help="of dcal predict; unset: its default")
    parser.add_argument("--rows", nargs="+", help="those to measure; unset: all")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given)
    setting = f"{given.images:,} JPEGs of {WIDTH}x{HEIGHT}, {given.backbone} at 224; "
    setting += f"{describe_machine(torch.device('cpu'), torch.float32)}; median of {given.repeats}"
    print(f"{setting}\n{table(rows, 'whole command')}")
    write_json(given.json, setting=setting, rows=rows)
    return 0


def measure(folder: Path, given: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """The rows of the table; those of timm are what the others are divided by."""
    make_images(folder / "images", given.images)
    make_models(folder, given.backbone)
    commands = command_lines(folder, given)
    wanted = given.rows or list(commands)
    runs: dict[str, list[Run]] = {row: [] for row in wanted}
    for number in range(given.repeats):
        for row in wanted:
            runs[row].append(run(commands[row]))
            print(f"{number + 1}/{given.repeats} {row}: {runs[row][-1]}", file=sys.stderr, flush=True)
    rows = {}
    for row, measured in runs.items():
        seconds, first, cpu, memory = (statistics.median(column) for column in zip(*measured, strict=True))
        rows[row] = {
            "images/s": None if row == "import" else given.images / seconds,
            "first answer, s": first,
            "CPU s": cpu,
            "peak MiB": memory,
        }
    timm, imports = rows.get("timm fp32"), rows.get("import")
    for row, numbers in rows.items():
        of_images = timm is not None and row != "import"
        numbers["images/s / timm"] = numbers["images/s"] / timm["images/s"] if of_images else None
        numbers["first / import"] = numbers["first answer, s"] / imports["first answer, s"] if imports else None
    return rows


def command_lines(folder: Path, given: argparse.Namespace) -> dict[str, list[str]]:
    """By row. `dcal predict` prints a table here: a line as soon as there is an answer."""
    images, workers = f"{folder / 'images'}", given.num_workers
    ours = [*COMMAND, "predict", f"{folder / 'dcal.safetensors'}", images]
    ours += [] if workers is None else [f"--num_workers={workers}"]
    timm = [sys.executable, "-m", "benchmarks.timm_inference", images, f"--checkpoint={folder / 'timm.safetensors'}"]
    return {
        "import": [sys.executable, "-c", IMPORTS],
        "timm fp32": [*timm, f"--output={folder / 'timm.csv'}", f"--backbone={given.backbone}"],
        "sa fp32": [*ours, "--branch=sa", "--precision=fp32"],
        "both fp32": [*ours, "--precision=fp32"],
        "sa auto": [*ours, "--branch=sa", "--precision=auto"],
        "both auto": [*ours, "--precision=auto"],
    }


def run(command: list[str]) -> Run:
    """Runs a command to its end.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if not line.startswith("first"):  # the head of our table
        process.stdout.readline()
    first = time.perf_counter() - start
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return Run(time.perf_counter() - start, first, cpu, usage.ru_maxrss / 2**10)


def make_images(folder: Path, count: int) -> None:
    """JPEGs with smooth colors and some noise, about 60 KB each."""
    folder.mkdir()
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    for number in range(min(count, DIFFERENT)):
        phases = random.uniform(0, 6, 3)
        smooth = np.stack([127 + 90 * np.sin(x / 31 + y / 17 + phase) for phase in phases], axis=-1)
        pixels = (smooth + random.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06}.jpg", quality=90)
    for number in range(DIFFERENT, count):
        os.link(folder / f"{number % DIFFERENT:06}.jpg", folder / f"{number:06}.jpg")


def make_models(folder: Path, backbone: str) -> None:
    """Random weights, since time does not depend on them: with SA and GLCA, and of timm's backbone alone."""
    config = FGVCConfig(
        backbone=backbone, ablation="sa_glca", img_size=224, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
    )
    model = build_model(config, CLASSES, pretrained=False)
    names = [f"class_{number:03}" for number in range(CLASSES)]
    save_model(folder / "dcal.safetensors", model.state_dict(), config, names, {"epoch": config.epochs})
    save_file(model.backbone.state_dict(), folder / "timm.safetensors")


if __name__ == "__main__":
    sys.exit(main())
