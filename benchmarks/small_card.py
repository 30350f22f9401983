"""Many steps on a card that is made small: whether they fit, and whether the peak of memory stays where it is.

    python -m benchmarks.small_card --backbone vit_base_patch16_224 --batch_size 16 --precision fp16 --gib 15

The process may allocate no more than `--gib` of a CUDA device; other devices are not made small. The growth is that of
the peak from step 10 to the last: a graph kept from step to step shows at once.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks.measure import (
    add_flags,
    add_model_flags,
    chosen_device,
    describe_machine,
    describe_model,
    synchronize,
    table,
    write_json,
)
from benchmarks.train_step import TrainingStep, add_step_flags, compile_model
from dual_cross_attention.devices import keep_freed_memory, peak_memory_mb
from dual_cross_attention.models import ABLATIONS

SETTLED = 10  # steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    add_model_flags(parser)
    add_step_flags(parser)
    parser.add_argument("--ablation", default="full", choices=ABLATIONS)
    parser.add_argument("--gib", type=float, default=15.0)
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args(arguments)
    if given.steps <= SETTLED:
        parser.error(f"expected more than {SETTLED} --steps, got {given.steps}")

    keep_freed_memory()
    device, dtype = chosen_device(given)
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(given.gib * 2**30 / whole)
    step = TrainingStep(given.ablation, given)
    if given.compile:
        compile_model(step.task.model)
    peaks = []  # MiB, so far
    for steps in (SETTLED, given.steps - SETTLED):
        for _ in range(steps):
            step()
        synchronize(device)
        peaks.append(peak_memory_mb(device))
    growth = {f"MiB more than at step {SETTLED}": peaks[1] - peaks[0]}
    rows = {given.ablation: {"steps": given.steps, "peak MiB": peaks[1], **growth}}
    limit = f"no more than {given.gib:g} GiB" if device.type == "cuda" else "no limit"
    print(f"{describe_model(given)}, batch {given.batch_size}; {describe_machine(device, dtype)}; {limit}\n")
    print(table(rows))
    write_json(given.json, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
