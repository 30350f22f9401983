"""What several processes gain: images a second of the program that users run, under torchrun, against one process.

    python -m benchmarks.processes --processes 1 2 --device cpu
    python -m benchmarks.processes --processes 1 2 4 8 --device cuda --backbone vit_base_patch16_224 --batch_size 32
    python -m benchmarks.processes --processes 1 2 -- --parallel fsdp

Every process has the same micro-batch, so N of them should be N times as fast: the efficiency is the share of that. On
a CPU each has one thread. Images are those of the toy dataset; the rate is that of the last epoch's steps, and of
several turns the median. What stands behind `--` goes to `dcal train`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from benchmarks.epoch import TRAIN
from benchmarks.measure import add_flags, chosen_device, describe_machine, table, write_json
from dual_cross_attention.runs.run_folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Train with each number of processes, in turns, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backbone", default="deit_tiny_patch16_224")
    parser.add_argument("--img_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=16, help="images of a process's micro-batch")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("train_flags", nargs="*", help="flags of dcal train, behind --")
    given = parser.parse_args(arguments)
    device, dtype = chosen_device(given)

    rates: dict[int, list[float]] = {number: [] for number in given.processes}
    for _ in range(given.turns):
        for number in given.processes:
            rates[number].append(images_per_second(number, given))
    medians = {number: statistics.median(of_number) for number, of_number in rates.items()}
    fewest = min(medians)
    rows = {
        f"{number} process{'es' if number > 1 else ''}": {
            "images/s": rate,
            f"/ {fewest}": rate / medians[fewest],
            "efficiency": rate / medians[fewest] * fewest / number,
        }
        for number, rate in medians.items()
    }
    print(
        f"{given.backbone} at {given.img_size}, {given.batch_size} images a process, {' '.join(given.train_flags)}; "
        f"{describe_machine(device, dtype)}\n"
    )
    print(table(rows))
    write_json(given.json, rows=rows)
    return 0


def images_per_second(processes: int, given: argparse.Namespace) -> float:
    """Of all processes together."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "dataset": "toy",
            "weights": "none",
            "backbone_kwargs": "{}",  # the toy task's are those of a smaller model
            "backbone": given.backbone,
            "img_size": given.img_size,
            "batch_size": given.batch_size,
            "epochs": given.epochs,
            "warmup_epochs": 0,
            "eval_every": given.epochs,
            "device": given.device,
            "precision": given.precision,
            "output_dir": folder,
        }
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        done = subprocess.run(
            [sys.executable, "-m", *launcher, TRAIN]
            + [f"--{name}={value}" for name, value in flags.items()]
            + given.train_flags,
            env=os.environ | ({"OMP_NUM_THREADS": "1"} if given.device == "cpu" else {}),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stderr)
        return RunFolder(folder).read_metrics()[-1]["train/images_per_second"]


if __name__ == "__main__":
    sys.exit(main())
