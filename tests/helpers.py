"""What tests of several rooms share: tiny models, random images, comparing runs, errors of one line."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dual_cross_attention import DualCrossAttentionViT, create_model
from dual_cross_attention.data import ImageList
from dual_cross_attention.runs.run_folder import RunFolder

TINY_VIT = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
"""Arguments of timm that make any plain ViT one of 0.1 M parameters."""
TINY = TINY_VIT | {"depth": 2}
BRANCHES = {"full": ("sa", "glca", "pwca"), "sa_only": ("sa",), "sa_glca": ("sa", "glca"), "sa_pwca": ("sa", "pwca")}
"""Of each ablation, in training."""
STEM = ("cls_token", "pos_embed", "reg_token", "dist_token", "patch_embed", "norm_pre")
"""What parameters of a backbone before its first block are called."""
TIMES = {"train/images_per_second", "peak_memory_mb"}
"""Columns of metrics.jsonl that differ from run to run."""


def tiny_model(ablation: str = "full", sharpness: float = 1.0, **kwargs: Any) -> DualCrossAttentionViT:
    """A model of five classes for images of 32 x 48, the same at every call.

    Args:
        sharpness: see `sharpen`.
    """
    torch.manual_seed(0)
    options = {"img_size": (32, 48), "ablation": ablation, **TINY_VIT, **kwargs}
    return sharpen(create_model("vit_tiny_patch16_224", 5, **options), sharpness)


def sharpen(model: DualCrossAttentionViT, factor: float) -> DualCrossAttentionViT:
    """Scales all query, key and value projections; a fresh model attends almost uniformly."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.weight"):
                parameter.mul_(factor)
    return model


def random_images(batch: int = 4, size: tuple[int, int] = (32, 48)) -> Tensor:
    """(B, 3, *size), the same at every call."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def rows_of(run: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl, as the package reads them."""
    return RunFolder(run).read_metrics()


def metrics_rows(run: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl, as they are in the file, without `TIMES`."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def is_frozen(name: str, blocks: int | str) -> bool:
    """Whether `--freeze BLOCKS` freezes a parameter of the model, by its name."""
    if not name.startswith("backbone."):
        return False
    _, layer, *more = name.split(".")
    if blocks == "all":
        return not layer.startswith("head")
    return layer.startswith(STEM) or (layer == "blocks" and int(more[0]) < blocks)


def names_of(images: ImageList) -> list[str]:
    """FOLDER/FILE of each image."""
    return [f"{path.parent.name}/{path.name}" for path in images.images]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last of two dimensions."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def assert_same_run(one: Path, other: Path) -> None:
    """Both runs have the same metrics, and the same best and last model to the bit."""
    assert metrics_rows(one) == metrics_rows(other)
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def assert_refused(outcome: Any, *words: object) -> None:
    """A command ended with exit status 2 and an error of one line that has these words."""
    assert outcome.status == 2, outcome
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("dcal: error: ")
    assert_says(outcome.err, *words)


def assert_says(message: object, *words: object) -> None:
    """A message has these key tokens."""
    for word in words:
        assert f"{word}" in f"{message}", f"{message}"


def assert_lines(lines: Sequence[str], *tokens: tuple[object, ...]) -> None:
    """There is one line for each tuple, in this order, which has its key tokens."""
    assert len(lines) == len(tokens), lines
    for line, words in zip(lines, tokens, strict=True):
        assert_says(line, *words)


def any_says(lines: Iterable[str], *words: object) -> bool:
    """Whether one of the lines has all of these key tokens."""
    return any(all(f"{word}" in line for word in words) for line in lines)


def assert_compiled_blocks_compute_the_same(model, epoch: Callable[[], list[Tensor]], tolerance: float) -> None:
    """`epoch()` gives the same tensors with compiled blocks, and no graph is compiled in a second one."""
    torch.compiler.reset()
    plain = epoch()
    model.compile_blocks(backend="aot_eager")
    for ours, expected in zip(epoch(), plain, strict=True):
        torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)
    with torch.compiler.set_stance("fail_on_recompile"):
        epoch()
