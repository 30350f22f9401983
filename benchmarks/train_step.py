"""One training step of every ablation, of timm's plain model, and of the paper's equations taken literally.

    python -m benchmarks.train_step --img_size 448 --batch_size 4
    python -m benchmarks.train_step --task reid --img_size 256 128 --batch_size 64 --num_classes 751
    python -m benchmarks.train_step --rows timm full --compile true --memory false
    python -m benchmarks.train_step --rows sa_only sa_glca full full:pwca_blocks=4 full:distractor_tokens=0.25

Forward, loss, backward and the task's optimizer, on the same random batch. Rows: `timm` is timm's own model and
cross-entropy, without any code of ours; `textbook` is `benchmarks.textbook`, never compiled nor checkpointed. An
ablation may be followed by arguments of `create_model`, as `full:pwca_blocks=4,distractor_tokens=0.25`; the mean step
with `pwca_every` K takes (full + (K - 1) · sa_glca) / K. FLOPs are those that run, forward and
backward, counted by `torch.utils.flop_counter`, which does not see into kernels written in Triton. Rollout is also
timed alone; on a GPU that is with its launches, which a step hides.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
import yaml
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

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
    matmul_flops_per_second,
    peak_above_idle,
    synchronize,
    table,
    time_in_turns,
    truth,
    write_json,
)
from benchmarks.textbook import TextbookDCAL
from dual_cross_attention import create_model
from dual_cross_attention.attention import attention_rollout
from dual_cross_attention.configs.training_config import sides
from dual_cross_attention.devices import keep_freed_memory
from dual_cross_attention.models import ABLATIONS, DualCrossAttentionViT
from dual_cross_attention.tasks import FGVCTask, ReIDTask, RetrievalSplit
from dual_cross_attention.training.optimizers import build_optimizer

ROWS = ("timm", *ABLATIONS, "textbook")
OPTIMIZERS = {"fgvc": "adamw", "reid": "sgd"}
DROP_PATH_RATE = 0.1
IMAGES_PER_IDENTITY = 4
WARMUP = 3  # steps: the first ones compile, and make the optimizer's state


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    add_timing_flags(parser)
    add_model_flags(parser)
    add_step_flags(parser)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), type=known_row)
    given = parser.parse_args(arguments)

    keep_freed_memory()
    device, dtype = chosen_device(given)
    memory = {row: peak_above_idle(device, run_steps, row, given) if given.memory else None for row in given.rows}
    steps = {row: TrainingStep(row, given) for row in given.rows}
    flops = {row: count_flops(step) for row, step in steps.items()}
    if given.compile:
        for step in steps.values():
            compile_model(step.task.model)
    functions: dict[str, Function] = dict(steps)
    if "full" in steps:
        functions["rollout"] = rollout_of(steps["full"].task.model.backbone, given.batch_size, device, dtype)
    seconds = time_in_turns(functions, device, given.repeats, WARMUP)
    peak = matmul_flops_per_second(device, dtype)

    def ratio(values: dict[str, float], row: str, to: str) -> float | None:
        return values[row] / values[to] if to in values else None

    rows = {
        row: {
            "ms": 1e3 * seconds[row],
            "images/s": given.batch_size / seconds[row],
            "time / timm": ratio(seconds, row, "timm"),
            "time / sa_only": ratio(seconds, row, "sa_only"),
            "FLOPs / sa_only": ratio(flops, row, "sa_only"),
            "peak MiB": memory[row],
            "TFLOP/s": 1e-12 * flops[row] / seconds[row],
            "% of matmul": 100 * flops[row] / seconds[row] / peak,
        }
        for row in given.rows
    }
    checkpointing = ", checkpointing" if given.use_gradient_checkpointing else ""
    setting = (
        f"{describe_model(given)}, {given.task}, batch {given.batch_size}{checkpointing}; "
        f"{describe_machine(device, dtype)}; median of {given.repeats}; "
        f"a matrix product reaches {1e-12 * peak:.3g} TFLOP/s"
    )
    print(f"{setting}\n\n{table(rows)}")
    share = None
    if "full" in steps:
        share = 100 * seconds["rollout"] / seconds["full"]
        print(f"\nrollout alone: {1e3 * seconds['rollout']:.3g} ms, {share:.3g} % of a step of `full`")
    write_json(given.json, setting=setting, rows=rows, rollout_percent=share)
    return 0


def known_row(row: str) -> str:
    """A row of the command line; argparse tells of what is raised."""
    name, settings = split_row(row)
    if name not in ROWS or (settings and name not in ABLATIONS):
        raise argparse.ArgumentTypeError(f"there are {', '.join(ROWS)}, and ABLATION:SETTING=VALUE,...; got {row}")
    return row


def split_row(row: str) -> tuple[str, dict[str, Any]]:
    """`full:pwca_blocks=4` → `"full", {"pwca_blocks": 4}`."""
    name, _, settings = row.partition(":")
    pairs = (each.partition("=") for each in settings.split(",") if each)
    return name, {setting: yaml.safe_load(value) for setting, _, value in pairs}


def add_step_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a `TrainingStep`, beside those of every model."""
    parser.add_argument("--task", default="fgvc", choices=OPTIMIZERS)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--use_gradient_checkpointing", type=truth, default=False)


class TrainingStep:
    """A whole step on the same random batch: forward, loss, backward, optimizer; fp16 with loss scaling.

    Args:
        row: one of `ROWS`, or an ablation with settings.
        given: flags of `add_flags`, `add_model_flags` and `add_step_flags`.
    """

    def __init__(self, row: str, given: argparse.Namespace):
        torch.manual_seed(0)
        self.device, self.dtype = chosen_device(given)
        task = TimmTask(timm_model(given)) if row == "timm" else our_task(row, given)
        self.task = task.to(self.device).train()
        if row != "textbook":
            self.task.model.set_grad_checkpointing(given.use_gradient_checkpointing)
        self.optimizer = build_optimizer(self.task, 1e-5, 0.05, OPTIMIZERS[given.task])
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        # Re-ID's P × K; to FGVC, which classes they are is all the same.
        labels = torch.arange(given.batch_size, device=self.device) // IMAGES_PER_IDENTITY % given.num_classes
        images = torch.randn(given.batch_size, 3, *sides("img_size", given.img_size), device=self.device)
        self.batch = {"images": images, "labels": labels}

    def __call__(self) -> None:
        with autocast(self.device, self.dtype):
            loss = self.task(self.batch)["loss"]
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


class TimmTask(nn.Module):
    """timm's model and its plain loss, with what a step asks of a task: {"images", "labels"} → {"loss"}."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.model(batch["images"]), batch["labels"])}


def timm_model(given: argparse.Namespace) -> VisionTransformer:
    """timm's own model with its classifier: the baseline of either task."""
    return timm.create_model(
        given.backbone,
        num_classes=given.num_classes,
        img_size=tuple(sides("img_size", given.img_size)),
        drop_path_rate=DROP_PATH_RATE,
    )


def our_task(row: str, given: argparse.Namespace) -> FGVCTask | ReIDTask:
    """An ablation's task, or the textbook's."""
    textbook = row == "textbook"
    ablation, settings = split_row("full" if textbook else row)
    model = create_model(
        given.backbone,
        given.num_classes,
        given.task,
        tuple(sides("img_size", given.img_size)),
        ablation,
        drop_path_rate=DROP_PATH_RATE,
        **settings,
    )
    if textbook:
        model = TextbookDCAL(model)
    if given.task == "fgvc":
        return FGVCTask(model)
    nobody = torch.empty(0, dtype=torch.int64)  # the test split: nothing is retrieved here
    return ReIDTask(model, RetrievalSplit(nobody, nobody, 0))


def compile_model(model: nn.Module) -> None:
    """Our blocks one by one, timm's model whole; the textbook stays as it is."""
    if isinstance(model, DualCrossAttentionViT):
        model.compile_blocks()
    elif not isinstance(model, TextbookDCAL):
        model.compile()


def run_steps(row: str, given: argparse.Namespace) -> None:
    """As many steps as it takes to reach the peak of memory. With --compile on a CPU, the compiler's own is in it."""
    step = TrainingStep(row, given)
    if given.compile:
        compile_model(step.task.model)
    for _ in range(WARMUP):
        step()
    synchronize(step.device)


def rollout_of(vit: VisionTransformer, batch_size: int, device: torch.device, dtype: torch.dtype) -> Function:
    """`attention_rollout` on random queries and keys, shaped and strided as the backbone's projections give them."""
    attention, tokens = vit.blocks[0].attn, vit.num_prefix_tokens + vit.patch_embed.num_patches
    shape = (batch_size, tokens, 3, attention.num_heads, attention.head_dim)
    projected = [torch.randn(shape, device=device, dtype=dtype).permute(2, 0, 3, 1, 4) for _ in vit.blocks]
    return partial(attention_rollout, [each[0] for each in projected], [each[1] for each in projected])


if __name__ == "__main__":
    sys.exit(main())
