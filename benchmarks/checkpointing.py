"""What a checkpoint costs: how long a training stands still for it, how long writing takes beside it, and reading.

    python -m benchmarks.checkpointing --backbone vit_base_patch16_224 --folder /mnt/scratch

The state is that of a run with AdamW after a step. The shares are of the training time at the default
--checkpoint_minutes: one checkpoint in so many minutes.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from accelerate import Accelerator

from benchmarks.measure import add_flags, chosen_device, describe_machine, synchronize, table, write_json
from dual_cross_attention import create_model
from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.training.checkpointing.checkpoints import CheckpointWriter, read_state, verify
from dual_cross_attention.training.distributed.strategy import DistributedStrategy
from dual_cross_attention.training.optimizers import build_optimizer

MINUTES = next(field.default for field in fields(TrainingConfig) if field.name == "checkpoint_minutes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write checkpoints, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--num_classes", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="on the disk in question; unset: the system's temporary folder")
    parser.add_argument("--repeats", type=int, default=5, help="checkpoints, of which the medians")
    given = parser.parse_args(arguments)
    device, dtype = chosen_device(given)

    model = create_model(given.backbone, given.num_classes, img_size=224)
    task = FGVCTask(model)
    optimizer = build_optimizer(task, 1e-4, 0.05)
    strategy = DistributedStrategy(Accelerator(cpu=device.type == "cpu"), task, optimizer)
    for parameter in task.parameters():
        parameter.grad = parameter.new_zeros(parameter.shape)
    optimizer.step()

    taken: dict[str, list[float]] = {"training stands still": [], "written after": [], "verified and read": []}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        writer = CheckpointWriter(Path(folder), lambda message: sys.exit(message))
        for number in range(given.repeats):
            synchronize(device)
            start = time.perf_counter()
            writer.save(f"epoch_{number:04d}", strategy.state_dict(), {"epoch": number})
            stood = time.perf_counter()
            writer.wait()
            written = time.perf_counter()
            path = Path(folder) / f"epoch_{number:04d}"
            assert verify(path) is None
            size = sum(file.stat().st_size for file in path.iterdir())
            strategy.load_state_dict(read_state(path))
            read = time.perf_counter()
            for name, seconds in zip(taken, (stood - start, written - start, read - written), strict=True):
                taken[name].append(seconds)

    rows = {
        name: {"seconds": statistics.median(seconds), "% of training time": None} for name, seconds in taken.items()
    }
    for name in ("training stands still", "written after"):
        rows[name]["% of training time"] = 100 * rows[name]["seconds"] / (60 * MINUTES)
    print(
        f"{given.backbone}, full, AdamW: {size / 2**20:,.0f} MiB; every {MINUTES:g} minutes; "
        f"{describe_machine(device, dtype)}\n"
    )
    print(table(rows, first="a checkpoint"))
    write_json(given.json, rows=rows, mib=size / 2**20)
    return 0


if __name__ == "__main__":
    sys.exit(main())
