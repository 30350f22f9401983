"""Lines that a training shows: its start, its progress, and how it ended."""

import math

from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.training.train_state import TrainState

STORED_WEIGHTS = 4
"""Tensors of the size of the attention weights that a block keeps for its backward pass where heads are mixed: before
the softmax, after it in two layouts, and after the second mixing."""
DIVERGED_ADVICE = "a lower --lr, a warm-up (--warmup_epochs 5), or --precision bf16 or fp32 may help"


def effective_batch(batch_size: int, per_step: int, world_size: int) -> str:
    """Images of an optimizer step, and the factors of that number."""
    ranks = f"{world_size} rank{'s'[: world_size > 1]}"
    if per_step % world_size:  # of a run that resumes on another number of ranks
        factors = f"{per_step} micro-batches × {batch_size}, on {ranks}"
    else:
        accumulation = per_step // world_size
        factors = f"{ranks} × {batch_size} × {accumulation} accumulation step{'s'[: accumulation > 1]}"
    return f"effective batch size {batch_size * per_step} ({factors})"


def attention_memory(model: DualCrossAttentionViT, batch_size: int, is_checkpointed: bool) -> str | None:
    """What attention weights take in a training step, where no fused kernel computes them; None: one does."""
    family, backbone = model.family, model.backbone
    if family.has_fused_attention:
        return None
    blocks = family.blocks(backbone)
    heads, _ = family.heads(blocks[0])
    keys = 3 if model.has_pwca else 1  # for each token: its image's in SA, its image's and the distractor's in PWCA
    of_block = 4 * STORED_WEIGHTS * batch_size * heads * keys * backbone.patch_embed.num_patches**2
    kept, of = (1, "one block") if is_checkpointed else (len(blocks), f"{len(blocks)} blocks")
    advice = "" if is_checkpointed else "; --use_gradient_checkpointing true keeps those of one"
    return (
        f"attention of the family {family.name} is not fused: its weights take about {of_block * kept / 2**30:.2g} GiB "
        f"for {batch_size} images in float32, of {of}{advice}"
    )


def long_average(decay: float, steps: int) -> str | None:
    """A warning of a moving average over more than a fifth of a training's steps; None: it is over less.

    The average then has weights of a time when the model was far from trained: measured in docs/fine-tuning.md.
    """
    window = 1 / (1 - decay) if decay < 1 else math.inf
    if window <= steps / 5:
        return None
    advice = (
        f": --ema {1 - float(f'{20 / steps:.1g}'):.6g} is an average over a twentieth of them" if steps >= 40 else ""
    )
    return f"ema {decay:g} averages over about {window:,.0f} steps, and the training has {steps:,}{advice}"


def uneven_ranks(per_step: int, world_size: int) -> str:
    """A warning of a run that resumes on a number of ranks that does not divide its micro-batches."""
    return (
        f"a step has {per_step} micro-batches, as when the run began: {world_size} ranks cannot split them evenly, so "
        "some wait for others"
    )


def resumed(state: TrainState, steps_per_epoch: int) -> str:
    """Where a run resumes."""
    step = f", step {state.step_in_epoch} of {steps_per_epoch}" if state.step_in_epoch else ""
    return f"resumed after epoch {state.epoch}{step}"


def interrupted(signal: str, state: TrainState, epochs: int, steps_per_epoch: int, last_checkpoint: str) -> str:
    """Where a run stopped that got a signal, and how to continue it."""
    return (
        f"{signal}: left at epoch {state.epoch + 1} of {epochs}, step {state.step_in_epoch} of {steps_per_epoch}; "
        f"{last_checkpoint}; the same command resumes from there"
    )


def step_status(latest: dict[str, float], images_per_second: float, memory_mb: float) -> str:
    """The status beside the progress bar.

    Args:
        latest: scalars of the last step that was read.
        images_per_second: over all ranks.
        memory_mb: peak memory in MiB.
    """
    weights = " ".join(f"{name}={latest[name]:+.3f}" for name in sorted(latest) if name.startswith("w_"))
    return f"loss {latest.get('loss', math.nan):.3f}  {images_per_second:.1f} img/s  {memory_mb:.0f} MiB  {weights}"


def epoch_summary(row: dict[str, float], epochs: int) -> str:
    """An epoch's row of metrics.jsonl, as a line."""
    parts = [
        f"epoch {row['epoch']:.0f}/{epochs}",
        f"loss {row['train/loss']:.3f}",
        f"train {row['train/accuracy']:.1f}%",
    ]
    parts += [f"{name.removeprefix('val/')} {value:.2f}" for name, value in row.items() if name.startswith("val/")]
    parts += [f"{name.removeprefix('train/')} {row[name]:+.3f}" for name in row if name.startswith("train/w_")]
    parts += [f"{row['train/images_per_second']:.1f} img/s", f"{row['peak_memory_mb']:.0f} MiB"]
    return "  ".join(parts)
