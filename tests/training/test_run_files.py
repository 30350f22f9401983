"""What a training leaves in its folder and prints, by the command line."""

import gc
import json
import math
from dataclasses import replace
from multiprocessing import active_children

import pytest
from PIL import Image
from safetensors import safe_open
from torchvision.transforms import v2

from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.data import cache, preprocessing
from dual_cross_attention.tasks import fgvc_data as fgvc
from dual_cross_attention.training import run as training
from dual_cross_attention.training import setup, trainer
from tests.helpers import BRANCHES, assert_same_run, rows_of

ALWAYS = {"epoch", "train/loss", "train/accuracy", "train/images_per_second", "peak_memory_mb", "lr"}


@pytest.mark.parametrize("ablation", BRANCHES)
def test_files_and_columns_of_a_run(dcal, small, tmp_path, ablation):
    run = tmp_path / "run"
    outcome = dcal("train", *small, "--ablation", ablation, "--pwca_start=0", "--output_dir", run)
    assert (outcome.status, outcome.err) == (0, "")
    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "config.yaml",
        "data.json",
        "metrics.jsonl",
        "best.safetensors",
        "last.safetensors",
        "checkpoints",
        "tensorboard",
        "train_images.jpg",
    }
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(run.rglob("*.tmp"))
    # The end says where the results are, and what to type next.
    assert f"dcal eval {run}" in outcome.out and "best epoch" in outcome.out

    has = BRANCHES[ablation]
    expected = ALWAYS | {f"train/loss_{branch}" for branch in has} | {"val/top1", "val/top5", "val/top1_sa"}
    expected |= {f"train/w_{branch}" for branch in has} if len(has) > 1 else set()
    expected |= {"val/top1_glca"} if "glca" in has else set()
    rows = rows_of(run)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row.keys() == expected
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in row.values())
    assert rows[-1]["lr"] == 0  # the end of the cosine

    with safe_open(run / "best.safetensors", framework="pt") as file:
        metadata = file.metadata()
    best = max(rows, key=lambda row: row["val/top1"])
    assert json.loads(metadata["metrics"]) == best
    assert json.loads(metadata["classes"]) == ["ant", "bee", "cat"]
    assert json.loads(metadata["config"])["ablation"] == ablation
    assert "torch" in json.loads(metadata["versions"])


def test_one_line_of_progress_an_epoch_unwrapped(dcal, small, tmp_path):
    """Where there is no terminal, a line of the log is a line, however long the paths in it are."""
    run = tmp_path / ("long" * 40)
    lines = dcal("train", *small, "--output_dir", run).out.splitlines()
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 2
    for part in ("loss", "top1", "w_sa", "w_glca", "w_pwca", "img/s", "MiB"):
        assert all(part in line for line in epochs)
    assert f"run folder: {run}" in lines


def test_paths_are_shown_as_they_are(dcal, small, tmp_path):
    """Not as rich's markup and emoji, which take [brackets] and :colons: away, or fail on them."""
    run = tmp_path / "[red]run[/blue]:smile:"
    outcome = dcal("train", *small, "--output_dir", run)
    assert outcome.status == 0
    assert f"run folder: {run}" in outcome.out.splitlines()


def test_epochs_between_evaluations_have_no_validation(dcal, small, tmp_path):
    dcal("train", *small, "--epochs", 3, "--eval_every", 2, "--output_dir", tmp_path)
    assert ["val/top1" in row for row in rows_of(tmp_path)] == [False, True, True]  # the last is always evaluated


def test_config_of_a_run_gives_the_same_settings_again(dcal, small, tmp_path):
    flags = [
        *small,
        "--img_size",
        "32",
        "24",
        "--lr_per_512",
        "3e-4",
        "--clip_grad",
        "null",
        "--output_dir",
        str(tmp_path),
    ]
    dcal("train", *flags)
    resolved = replace(parse_config(flags), mean=[0.5] * 3, std=[0.5] * 3)  # as this ViT was pretrained
    assert parse_config(["--config", str(tmp_path / "config.yaml")]) == resolved
    versions = (tmp_path / "config.yaml").read_text().splitlines()[:7]
    assert all(line.startswith("# ") for line in versions) and any(line.startswith("# torch ") for line in versions)


def test_small_batches_with_accumulation_and_checkpointing(dcal, small, tmp_path):
    """The user's own command for a small card: 2 x 8 instead of 16."""
    outcome = dcal(
        "train", *small, "--batch_size", 2, "--gradient_accumulation_steps", 8,
        "--use_gradient_checkpointing", "true", "--lr", "null", "--warmup_epochs", 2, "--output_dir", tmp_path,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert all(math.isfinite(row["train/loss"]) for row in rows_of(tmp_path))
    # 36 images are 18 micro-batches and 3 updates an epoch; the warm-up ends at the peak for 16 images.
    assert rows_of(tmp_path)[-1]["lr"] == pytest.approx(5e-4 / 512 * 16)


def test_a_cache_changes_nothing(dcal, small, tmp_path, made):
    made = made((fgvc, "train_loader"), (fgvc, "test_loader"))
    for name, flags in {"read": (), "kept": ("--cache=ram", "--num_workers=2")}.items():
        assert dcal("train", *small, *flags, "--output_dir", tmp_path / name).status == 0
        assert [made[loader].dataset.cache is None for loader in ("train_loader", "test_loader")] == [
            name == "read"
        ] * 2
    assert_same_run(tmp_path / "kept", tmp_path / "read")
    assert dcal("eval", tmp_path / "kept").status == 0
    assert made["test_loader"].dataset.cache is None  # each image is read once


def test_a_cache_that_does_not_fit_is_refused(dcal, small, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "available_memory", lambda: 0)
    outcome = dcal("train", *small, "--cache=ram", "--output_dir", tmp_path / "run")
    assert outcome.status == 2
    assert "for 54 images of 39×39 pixels" in outcome.err and "--cache none" in outcome.err
    assert not (tmp_path / "run").exists()


def test_processes_that_read_images_end_with_the_run(dcal, small, tmp_path):
    """At once, by the loaders going out of scope: left to the garbage collector, each is waited for for 5 seconds."""
    gc.collect()
    assert not active_children()
    gc.disable()
    try:
        assert dcal("train", *small, "--num_workers=2", "--output_dir", tmp_path).status == 0
        assert not active_children()
        assert dcal("eval", tmp_path).status == 0
        assert not active_children()
    finally:
        gc.enable()


def test_settings_reach_what_they_are_for(dcal, small, tmp_path, made):
    """Settings reach the task, the loaders and the trainer."""
    made = made(
        (fgvc, "FGVCTask"),
        (fgvc, "train_loader"),
        (fgvc, "test_loader"),
        (fgvc, "train_transform"),
        (preprocessing, "test_transform"),
        (training, "Trainer"),
        (setup, "build_optimizer"),
        (trainer, "build_schedule"),
    )
    outcome = dcal(
        "train", *small, "--epochs=1", "--label_smoothing=0.125", "--weight_bound=1.5", "--flip=0.25",
        "--img_size", 32, 40, "--resize_size", 48, 56, "--batch_size=6", "--eval_batch_size=5",
        "--gradient_accumulation_steps=2", "--lr=null", "--lr_per_512=0.064", "--min_lr=1e-5", "--warmup_epochs=0.5",
        "--weight_decay=0.25", "--use_gradient_checkpointing", "true", "--precision=bf16", "--output_dir", tmp_path,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    task = made["FGVCTask"]
    assert (task.label_smoothing, task.weighting.bound, task.model.grad_checkpointing) == (0.125, 1.5, True)
    assert (made["train_loader"].sampler.batch_size, made["test_loader"].sampler.batch_size) == (6, 5)
    flip = next(step for step in made["train_transform"].transforms if isinstance(step, v2.RandomHorizontalFlip))
    assert flip.p == 0.25
    for transform in (made["train_transform"], made["test_transform"]):
        resize = next(step for step in transform.transforms if isinstance(step, v2.Resize))
        normalize = next(step for step in transform.transforms if isinstance(step, v2.Normalize))
        assert resize.size == [48, 56]
        assert transform(Image.new("RGB", (9, 9))).shape == (3, 32, 40)
        assert (normalize.mean, normalize.std) == ([0.5] * 3, [0.5] * 3)  # as this ViT was pretrained
    assert {group["weight_decay"] for group in made["build_optimizer"].param_groups} == {0.0, 0.25}
    schedule = made["build_schedule"]
    assert schedule.base_values[0] == pytest.approx(0.064 * 12 / 512)  # the effective batch
    assert (schedule.lr_min, schedule.warmup_t) == (1e-5, round(0.5 * 3))  # 36 images: 6 batches, 3 updates
    assert made["Trainer"].accelerator.mixed_precision == "bf16"
