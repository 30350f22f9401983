"""A training step and a prediction of each backbone, over timm's own of the same model in the same run.

    python -m benchmarks.backbones [--backbones NAME …] [--img_size 224] [--batch_size 4]

`step` is forward, backward and optimizer; `predict` is inference of SA and GLCA. What GLCA adds in parameters and FLOPs
is of inference, over SA alone.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.measure import (
    add_flags,
    add_timing_flags,
    count_flops,
    describe_machine,
    peak_above_idle,
    table,
    time_in_turns,
    write_json,
)
from benchmarks.train_step import WARMUP, TrainingStep, chosen_device, run_steps
from dual_cross_attention.devices import keep_freed_memory

BACKBONES = (
    "deit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vit_tiny_patch16_dinov3_qkvb",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_pe_core_tiny_patch16_384",
    "vit_base_patch16_siglip_224",
    "cait_xxs24_224",
    "swin_tiny_patch4_window7_224",
)
ROWS = ("timm", "sa_only", "sa_glca", "full")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    add_timing_flags(parser)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--img_size", type=int, nargs="+", default=[224], help="a side, or height and width")
    parser.add_argument("--num_classes", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=4)
    given = parser.parse_args(arguments)
    given.task, given.use_gradient_checkpointing, given.compile = "fgvc", False, False

    keep_freed_memory()
    device, dtype = chosen_device(given)
    rows = {name: measure_backbone(name, given, device) for name in given.backbones}
    size = "x".join(map(str, given.img_size))
    setting = f"{size}, batch {given.batch_size}; {describe_machine(device, dtype)}; median of {given.repeats}"
    print(f"{setting}\n\n{table(rows, 'backbone')}")
    write_json(given.json, setting=setting, rows=rows)
    return 0


def measure_backbone(name: str, given: argparse.Namespace, device: torch.device) -> dict[str, float | None]:
    """The row of one backbone."""
    given = argparse.Namespace(**vars(given) | {"backbone": name})
    memory = {row: peak_above_idle(device, run_steps, row, given) if given.memory else None for row in ("timm", "full")}
    steps = {row: TrainingStep(row, given) for row in ROWS}
    seconds = time_in_turns(steps, device, given.repeats, WARMUP)

    images = steps["timm"].batch["images"]
    models = {row: steps[row].task.model.eval().requires_grad_(False) for row in ROWS}  # the counter of FLOPs asks
    predicts = {"timm": lambda: models["timm"](images).softmax(-1)}
    predicts |= {row: partial(models[row].predict, images) for row in ("sa_only", "sa_glca")}
    with torch.inference_mode():
        predict_seconds = time_in_turns(predicts, device, given.repeats, WARMUP)
        flops = {row: count_flops(predicts[row]) for row in ("sa_only", "sa_glca")}
    parameters = {row: sum(each.numel() for each in models[row].parameters()) for row in ("sa_only", "sa_glca")}
    return {
        "timm's step, ms": 1e3 * seconds["timm"],
        "sa_only / timm": seconds["sa_only"] / seconds["timm"],
        "full / timm": seconds["full"] / seconds["timm"],
        "predict / timm": predict_seconds["sa_glca"] / predict_seconds["timm"],
        "GLCA, + % parameters": 100 * (parameters["sa_glca"] / parameters["sa_only"] - 1),
        "GLCA, + % FLOPs": 100 * (flops["sa_glca"] / flops["sa_only"] - 1),
        "timm, peak MiB": memory["timm"],
        "full, peak MiB": memory["full"],
    }


if __name__ == "__main__":
    sys.exit(main())
