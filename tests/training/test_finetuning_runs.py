"""Runs with settings of fine-tuning: each resumes bit for bit, in the middle of an epoch."""

import pytest
import torch
from safetensors.torch import load_file

SETTINGS = {
    "layer_decay": ("fgvc", ["--layer_decay=0.5"]),
    "layer_decay, reid": ("reid", ["--layer_decay=0.5"]),
    "freeze": ("fgvc", ["--freeze=1"]),
    "freeze, reid": ("reid", ["--freeze=1"]),
    "freeze all": ("fgvc", ["--freeze=all"]),
    "freeze all, reid": ("reid", ["--freeze=all", "--glca_start=0.4"]),
    "augmentation": (
        "fgvc",
        ["--mixup=0.8", "--cutmix=1", "--color_jitter=0.4", "--auto_augment=rand-m9-mstd0.5-inc1", "--class_balance"],
    ),
    "augmentation, reid": (
        "reid",
        ["--color_jitter=0.4", "--auto_augment=augmix-m3-w3", "--keep_aspect", "--interpolation=bilinear"],
    ),
    "ema": ("fgvc", ["--ema=0.8"]),
    "ema, reid": ("reid", ["--ema=0.8", "--eval_every=2"]),
}
"""By case: the task, and the flags that are added to `tasks`."""


@pytest.mark.parametrize("case", SETTINGS)
def test_an_interrupted_run_ends_with_equal_results(dcal, train_until, tasks, assert_same_results, tmp_path, case):
    task, added = SETTINGS[case]
    flags, number = [*tasks[task], *added], {"fgvc": 8, "reid": 6}[task]
    assert dcal("train", *flags, "--output_dir", tmp_path / "whole").status == 0
    ended = train_until(
        [*flags, "--checkpoint_minutes=0"], tmp_path / "run", kind="backward, after", number=number, does="SIGTERM"
    )
    assert ended.status == 75, ended.err
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 0 and "resumed after epoch" in outcome.out, outcome.err
    assert_same_results(tmp_path / "run", tmp_path / "whole")
    raw = {path.name: load_file(path) for path in (tmp_path / "whole").glob("*_raw.safetensors")}
    assert len(raw) == (2 if case.startswith("ema") else 0)
    for name, tensors in raw.items():
        ours = load_file(tmp_path / "run" / name)
        assert all(torch.equal(value, ours[tensor]) for tensor, value in tensors.items())


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_other_settings_are_another_run(dcal, tasks, undisturbed, task):
    """An existing run resumes with the settings that it began with, and no others."""
    outcome = dcal("train", *tasks[task], "--layer_decay=0.5", "--output_dir", undisturbed(task))
    assert outcome.status == 2 and "layer_decay (1.0 there, 0.5 here)" in outcome.err
