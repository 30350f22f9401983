"""The command line from end to end: what a run leaves, how it continues, and what `dcal eval` says of it."""

import gc
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.transforms import v2

from dual_cross_attention.cli import main
from dual_cross_attention.configs import FGVC_CONFIGS
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.data import FGVC_DATASETS, cache, draw_toy, load_fgvc, preprocessing
from dual_cross_attention.inference.model_files import read_model
from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.tasks import fgvc_data as fgvc
from dual_cross_attention.training import run as training
from dual_cross_attention.training import setup, trainer
from dual_cross_attention.training.checkpointing.checkpoints import read_progress, read_state, write_checkpoint
from dual_cross_attention.training.checkpointing.manager import CheckpointManager
from tests.helpers import BRANCHES, TIMES, rows_of

ALWAYS = {"epoch", "train/loss", "train/accuracy", "train/images_per_second", "peak_memory_mb", "lr"}


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def snapshot(run: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a run: when it was written, and what it holds."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


# --- what a run leaves ---


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
    assert without_times(rows_of(tmp_path / "kept")) == without_times(rows_of(tmp_path / "read"))
    assert_same_weights(tmp_path / "kept" / "last.safetensors", tmp_path / "read" / "last.safetensors")
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


# --- going on ---


def test_a_finished_run_is_left_alone(dcal, small, tmp_path):
    first = dcal("train", *small, "--output_dir", tmp_path)
    before = snapshot(tmp_path)
    again = dcal("train", *small, "--output_dir", tmp_path)
    assert again.status == 0
    assert "nothing to do" in again.out
    best = [line for line in first.out.splitlines() if line.startswith("best epoch")]
    assert best and best[0] in again.out
    assert snapshot(tmp_path) == before


def test_never_refuses_a_folder_with_a_run(dcal, small, tmp_path):
    assert dcal("train", *small, "--resume", "never", "--output_dir", tmp_path).status == 0
    before = snapshot(tmp_path)
    outcome = dcal("train", *small, "--resume", "never", "--output_dir", tmp_path)
    assert outcome.status == 2
    assert "holds a run already" in outcome.err
    assert snapshot(tmp_path) == before


def test_other_settings_are_refused_and_listed(dcal, small, tmp_path):
    dcal("train", *small, "--output_dir", tmp_path)
    before = snapshot(tmp_path)
    outcome = dcal("train", *small, "--lr", 0.5, "--ablation", "sa_glca", "--num_workers", 1, "--output_dir", tmp_path)
    assert outcome.status == 2
    assert "lr (0.001 there, 0.5 here)" in outcome.err
    assert "ablation (full" in outcome.err and "sa_glca" in outcome.err
    assert "num_workers" not in outcome.err  # says where it runs, not what it computes
    assert snapshot(tmp_path) == before


class PowerCutError(Exception):
    """The end of a process, as far as the files are concerned."""


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("moment", ["between steps", "before the checkpoint"])
def test_an_interrupted_run_resumes_exactly(dcal, small, tmp_path, monkeypatch, moment, epoch):
    """Interrupted anywhere, the run ends with the very weights and rows of one that was not."""
    small = [*small, "--epochs=3"]
    assert dcal("train", *small, "--output_dir", tmp_path / "whole").status == 0

    with monkeypatch.context() as patch:
        cut = (epoch - 1) * 5 + 3  # 36 images in batches of 8: five steps an epoch
        seen = 0

        def step(task, batch, original=FGVCTask.training_step):
            nonlocal seen
            seen += 1
            if seen == cut:
                raise PowerCutError
            return original(task, batch)

        def save(self, state, ends_epoch=False, original=CheckpointManager.save):
            if state.epoch == epoch:
                raise PowerCutError
            return original(self, state, ends_epoch)

        if moment == "between steps":
            patch.setattr(FGVCTask, "training_step", step)
        else:
            patch.setattr(CheckpointManager, "save", save)
        with pytest.raises(PowerCutError):
            dcal("train", *small, "--output_dir", tmp_path / "cut")

    torch.rand(7)  # the state of the generators must not matter
    outcome = dcal("train", *small, "--output_dir", tmp_path / "cut")
    assert outcome.status == 0, outcome.err
    assert ("resumed after epoch 1" in outcome.out) == (epoch == 2)
    for name in ("last", "best"):
        assert_same_weights(tmp_path / "whole" / f"{name}.safetensors", tmp_path / "cut" / f"{name}.safetensors")
    assert without_times(rows_of(tmp_path / "cut")) == without_times(rows_of(tmp_path / "whole"))


def test_going_on_from_another_run(dcal, small, tmp_path):
    dcal("train", *small, "--output_dir", tmp_path / "one")
    for source in ("one", "one/checkpoints/epoch_0002"):
        target = tmp_path / source.replace("/", "-").replace("one", "two")
        outcome = dcal("train", *small, "--epochs=3", "--resume", tmp_path / source, "--output_dir", target)
        assert outcome.status == 0, outcome.err
        assert "resumed after epoch 2" in outcome.out
        assert [row["epoch"] for row in rows_of(target)] == [3]
        assert (target / "best.safetensors").is_file()  # of this folder's rows, not of the other's
        assert "best epoch 3 of 3" in outcome.out


def test_going_on_is_refused_where_it_would_mix_runs(dcal, small, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    dcal("train", *small, "--output_dir", one)
    dcal("train", *small, "--seed=5", "--output_dir", other)
    before = {path: path.read_bytes() for path in other.glob("*.*")}
    into_other = dcal("train", *small, "--epochs=3", "--resume", one, "--output_dir", other)
    assert into_other.status == 2 and "holds a run already" in into_other.err
    assert before == {path: path.read_bytes() for path in other.glob("*.*")}
    finished = dcal("train", *small, "--resume", one, "--output_dir", tmp_path / "two")
    assert finished.status == 2 and "nothing to do" in finished.err
    changed = dcal("train", *small, "--epochs=3", "--lr=0.5", "--resume", one, "--output_dir", tmp_path / "three")
    assert changed.status == 2 and "0.5 here" in changed.err


def test_a_folder_of_its_own_for_other_settings(dcal, small, tmp_path, monkeypatch):
    """Without --output_dir, the same command continues and another one starts beside it."""
    monkeypatch.chdir(tmp_path)
    for flags in ([], ["--lr=0.5"], []):
        assert dcal("train", *small, "--epochs=1", *flags).status == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "fgvc-folder-vit_tiny_patch16_224-full-seed0",
        "fgvc-folder-vit_tiny_patch16_224-full-seed0-2",
    ]


def test_classes_that_changed_are_refused(dcal, small, tmp_path):
    run = tmp_path / "run"
    dcal("train", *small, "--output_dir", run)
    checkpoint = run / "checkpoints" / "epoch_0002"
    progress = read_progress(checkpoint)
    progress.classes[0] = "another"
    state = read_state(checkpoint)
    shutil.rmtree(checkpoint)
    write_checkpoint(checkpoint, state, progress.to_json())
    outcome = dcal("train", *small, "--epochs=3", "--resume", run, "--output_dir", tmp_path / "on")
    assert outcome.status == 2 and "same order" in outcome.err


# --- dcal eval ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small):
    """Runs of 3 epochs by ablation, which no test changes."""
    runs = {}

    def train(ablation):
        if ablation not in runs:
            runs[ablation] = tmp_path_factory.mktemp(ablation)
            flags = [f"--ablation={ablation}", "--epochs=3", f"--output_dir={runs[ablation]}"]
            assert main(["train", *small, *flags]) == 0
        return runs[ablation]

    return train


@pytest.mark.parametrize("ablation", ["full", "sa_only"])
def test_eval_agrees_with_the_best_epoch(dcal, trained, tmp_path, ablation):
    run = trained(ablation)
    best = max(rows_of(run), key=lambda row: row["val/top1"])
    shown = dcal("eval", run, "--json", tmp_path / "result.json")
    assert (shown.status, shown.err) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    branches = ("_sa", "_glca", "") if ablation == "full" else ("_sa", "")
    assert result.keys() == {"format_version", "checkpoint", "dataset", "images", "unreadable"} | {
        f"top{k}{branch}" for k in (1, 5) for branch in branches
    }
    assert (result["dataset"], result["images"], result["unreadable"]) == ("folder", 18, 0)
    assert result["checkpoint"] == str(run / "best.safetensors")
    for name in ("top1", "top5", "top1_sa", "top1_glca"):
        assert result.get(name) == best.get(f"val/{name}"), name

    table = {line.split("│")[1].strip(): line for line in shown.out.splitlines() if line.startswith("│")}
    assert list(table) == (["SA", "GLCA", "SA + GLCA"] if ablation == "full" else ["SA"])
    for name, suffix in (("SA", "_sa"), ("GLCA", "_glca"), ("SA + GLCA", "")):
        if name in table:
            assert [f"{result[f'top{k}{suffix}']:.2f}" for k in (1, 5)] == table[name].replace("│", " ").split()[-2:]


def test_eval_with_json_on_standard_output_prints_nothing_else_there(dcal, trained):
    outcome = dcal("eval", "--json", "-", trained("full"))
    assert json.loads(outcome.out)["images"] == 18
    assert "SA + GLCA" in outcome.err


def test_eval_of_a_file_and_of_another_epoch(dcal, trained):
    run = trained("full")
    last = json.loads(dcal("eval", run / "last.safetensors", "--json", "-").out)
    assert last["top1"] == rows_of(run)[-1]["val/top1"]
    assert last["checkpoint"] == str(run / "last.safetensors")
    other = json.loads(dcal("eval", run / "last.safetensors", "--json=-", "--batch_size", 3, "--num_workers", 1).out)
    assert other == last


def test_eval_with_the_data_elsewhere(dcal, trained, make_images, tmp_path):
    """The run says where the data was; --data_root says where it is now."""
    moved = make_images(tmp_path / "moved")
    for path in (moved / "val" / "ant").iterdir():
        path.unlink()
    result = json.loads(dcal("eval", trained("full"), "--data_root", moved, "--json", "-").out)
    assert result["images"] == 12


def test_the_model_can_be_used_from_python(trained):
    saved = read_model(trained("full"))
    assert saved.classes == ["ant", "bee", "cat"]
    assert not saved.model.training
    assert saved.model.predict(torch.rand(2, 3, 32, 32)).shape == (2, 3)


# --- settings on the command line ---


def test_help_of_eval_and_of_all(dcal):
    assert all(flag in dcal("eval", "--help").out for flag in ("RUN_OR_MODEL", "--data_root", "--json", "--precision"))
    for flags in ([], ["--help"], ["-h"]):
        outcome = dcal(*flags)
        assert outcome.status == 0 and "train" in outcome.out and "eval" in outcome.out
    assert dcal("--version").out.count(".") == 2


def test_data_sets_have_settings_and_loaders():
    assert list(FGVC_CONFIGS) == list(FGVC_DATASETS)


# --- the whole of it, as a user types it ---


def test_no_arguments_are_the_toy_task(dcal, tmp_path, monkeypatch):
    """With fewer images and epochs than a user gets."""
    few = replace(FGVC_DATASETS["toy"], load=lambda: draw_toy(train_per_species=7, test_per_species=2))
    monkeypatch.setitem(FGVC_DATASETS, "toy", few)
    monkeypatch.chdir(tmp_path)
    outcome = dcal("train", "--epochs", 1, "--num_workers", 0)
    assert (outcome.status, outcome.err) == (0, "")
    (run,) = Path("runs").iterdir()
    assert run.name == f"fgvc-toy-{parse_config([]).backbone}-full-seed0"
    assert "toy: 10 classes, 70 training and 20 test images" in outcome.out
    # What to type next is said as it can be typed.
    command = next(line.split() for line in outcome.out.splitlines() if line.startswith("  dcal eval"))
    result = json.loads(dcal(*command[1:], "--json", "-").out)
    assert (result["images"], result["top1"]) == (20, rows_of(run)[-1]["val/top1"])


@pytest.mark.slow
def test_toy_task_from_the_shell(tmp_path):
    """`python train.py` without a folder or a dataset, only shorter; then `dcal eval`, as it says at the end."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}

    def shell(*command):
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    trained = shell(sys.executable, root / "train.py", "--epochs", "1", "--num_workers", "1")
    assert (trained.returncode, trained.stderr) == (0, "")
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == f"fgvc-toy-{parse_config([]).backbone}-full-seed0"
    command = next(line.split() for line in trained.stdout.splitlines() if line.startswith("  dcal eval"))
    assert command == ["dcal", "eval", f"runs/{run.name}"]

    dcal = "import sys; from dual_cross_attention.cli import main; sys.exit(main())"
    evaluated = shell(sys.executable, "-c", dcal, *command[1:], "--json", "-")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["top1"] == pytest.approx(rows_of(run)[-1]["val/top1"], abs=0.3)
    assert json.loads(evaluated.stdout)["images"] == len(load_fgvc("toy", None).test)


def test_help_does_not_wait_for_torch():
    """Nor do mistyped flags: the libraries that take seconds to import come after the settings are known to be good."""
    code = """
import sys
from dual_cross_attention.cli import COMMANDS, main
for command in COMMANDS:
    assert main([command, "--help"]) == 0 and main([command, "--nope", "1"]) == 2
print(sorted({"torch", "timm", "accelerate"} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_two_processes(dcal, small, tmp_path):
    """Under torchrun: one voice, one folder, the learning rate of the effective batch, and every test image once."""
    run, root = tmp_path / "run", Path(__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", root / "train.py"]
    flags = [*small, "--eval_batch_size=5", "--warmup_epochs=2", "--lr=null", f"--output_dir={run}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("epoch ") for line in done.stdout.splitlines()) == 2
    rows = rows_of(run)
    assert [row["epoch"] for row in rows] == [1, 2]
    # 36 images in batches of 8 for two: 3 updates an epoch, all of them warm-up to the peak.
    assert rows[-1]["lr"] == pytest.approx(5e-4 / 512 * 16)
    best = max(rows, key=lambda row: row["val/top1"])
    result = json.loads(dcal("eval", run, "--json", "-").out)
    assert (result["top1"], result["top1_sa"]) == pytest.approx((best["val/top1"], best["val/top1_sa"]), abs=1e-4)


def test_a_start_says_what_a_step_is(dcal, small, tmp_path):
    """So that one process where two were meant is seen; the rate is the given one, or follows the effective batch."""
    flags = ["--epochs=1", "--gradient_accumulation_steps=2", "--output_dir"]
    outcome = dcal("train", *small, *flags, tmp_path)
    assert (
        outcome.status == 0
        and "effective batch size 16 (1 rank × 8 × 2 accumulation steps), peak lr 0.001" in outcome.out
    )
