"""Time of one training step of every ablation, as ratios within one run.

    python -m benchmarks.train_step --img_size 160 --batch_size 16

Forward, loss, backward and AdamW on random pictures; ablations are interleaved and medians are taken, so that what else
the machine does falls on all of them alike. FLOPs are counted by `torch.utils.flop_counter`, forward and backward.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from dual_cross_attention import create_model
from dual_cross_attention.models import ABLATIONS
from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.training.devices import choose_device, choose_precision
from dual_cross_attention.training.optimizers import build_optimizer


def main() -> int:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224")
    parser.add_argument("--img_size", type=int, default=448)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--num_classes", type=int, default=200)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each ablation, after two that are not")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args()

    device = choose_device(given.device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(choose_precision(given.precision, device))
    steps = {ablation: training_step(ablation, given, device, dtype) for ablation in ABLATIONS}
    flops = {ablation: count_flops(step) for ablation, step in steps.items()}
    seconds: dict[str, list[float]] = {ablation: [] for ablation in steps}
    for repeat in range(given.repeats + 2):
        for ablation, step in steps.items():
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            if repeat >= 2:
                seconds[ablation].append(time.perf_counter() - start)

    rows = {}
    for ablation in steps:
        median = statistics.median(seconds[ablation])
        rows[ablation] = {
            "ms": 1e3 * median,
            "images/s": given.batch_size / median,
            "time / sa_only": median / statistics.median(seconds["sa_only"]),
            "FLOPs / sa_only": flops[ablation] / flops["sa_only"],
        }
    print(
        f"{given.backbone} at {given.img_size}, batch {given.batch_size}, {device.type}, {dtype or torch.float32}, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads, median of {given.repeats}\n")
    columns = list(rows["sa_only"])
    print(f"| ablation | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for ablation, row in rows.items():
        print(f"| `{ablation}` | {' | '.join(f'{value:.2f}' for value in row.values())} |")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def training_step(ablation: str, given: argparse.Namespace, device: torch.device, dtype: torch.dtype | None):
    """A function that does one whole step on the same random batch."""
    torch.manual_seed(0)
    model = create_model(
        given.backbone, given.num_classes, img_size=given.img_size, ablation=ablation, drop_path_rate=0.1
    )
    task = FGVCTask(model).to(device).train()
    optimizer = build_optimizer(task, lr=1e-5, weight_decay=0.05)
    images = torch.randn(given.batch_size, 3, given.img_size, given.img_size, device=device)
    labels = torch.randint(given.num_classes, (given.batch_size,), device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = task({"images": images, "labels": labels})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def count_flops(step) -> int:
    """FLOPs of one step, rollout included."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that the clock reads its time and not the launch's."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


if __name__ == "__main__":
    sys.exit(main())
