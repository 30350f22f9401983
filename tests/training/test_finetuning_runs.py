"""Runs with settings of fine-tuning: each resumes bit for bit, in the middle of an epoch."""

from pathlib import Path

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

from dual_cross_attention.configs.training_config import TrainingConfig
from dual_cross_attention.inference.model_files import build_model, read_model
from tests.helpers import assert_refused, metrics_rows

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
    "lora": ("fgvc", ["--lora_rank=4", "--glca_init=last_block", "--layer_decay=0.5"]),
    "lora, reid": ("reid", ["--lora_rank=4", "--freeze=1"]),
    "ema of lora": ("fgvc", ["--lora_rank=4", "--ema=0.8"]),
    "ema": ("fgvc", ["--ema=0.8"]),
    "ema, reid": ("reid", ["--ema=0.8", "--eval_every=2"]),
    "resize": ("fgvc", ["--keep_aspect", "--interpolation=bilinear", "--img_size", "32", "24"]),
    "sie camera": ("reid", ["--sie=camera", "--cameras=name", "--sie_dropout=0.5"]),
    "sie view": ("reid", ["--sie=view", "--views=VIEWS", "--sie_dropout=0.5"]),
    "sie camera_view": ("reid", ["--sie=camera_view", "--cameras=name", "--views=VIEWS", "--sie_dropout=0.5"]),
}
"""By case: the task, and the flags that are added to `tasks`."""


@pytest.fixture
def views(people, tmp_path) -> Path:
    """A file with views of the images of `people`: none for the third of each camera."""
    paths = [path.relative_to(people).as_posix() for path in sorted(people.rglob("*.png"))]
    rows = [f"{path},{('front', 'rear', '')[int(path[-5])]}" for path in paths]
    (tmp_path / "views.csv").write_text("\n".join(["path,view", *rows]))
    return tmp_path / "views.csv"


@pytest.mark.parametrize("case", SETTINGS)
def test_an_interrupted_run_ends_with_equal_results(
    dcal, train_until, tasks, assert_same_results, views, tmp_path, case
):
    task, added = SETTINGS[case]
    flags, number = [*tasks[task], *(flag.replace("VIEWS", f"{views}") for flag in added)], {"fgvc": 8, "reid": 6}[task]
    assert dcal("train", *flags, "--output_dir", tmp_path / "whole").status == 0
    ended = train_until(
        [*flags, "--checkpoint_minutes=0"], tmp_path / "run", kind="backward, after", number=number, does="SIGTERM"
    )
    assert ended.status == 75, ended.err
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 0 and "resumed after epoch" in outcome.out, outcome.err
    assert_same_results(tmp_path / "run", tmp_path / "whole")
    raw = {path.name: load_file(path) for path in (tmp_path / "whole").glob("*_raw.safetensors")}
    assert len(raw) == (2 if "ema" in case else 0)
    for name, tensors in raw.items():
        ours = load_file(tmp_path / "run" / name)
        assert all(torch.equal(value, ours[tensor]) for tensor, value in tensors.items())


def test_every_setting_has_a_case():
    of_images = {"color_jitter", "auto_augment", "interpolation", "keep_aspect"}
    settings = {*TrainingConfig.GROUPS["fine-tuning"].split(), *of_images, "mixup", "cutmix", "class_balance", "sie"}
    flags = {flag for _, added in SETTINGS.values() for flag in added}
    assert settings <= {flag[2:].partition("=")[0] for flag in flags} and {"--freeze=1", "--freeze=all"} <= flags


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_other_settings_are_another_run(dcal, tasks, undisturbed, task):
    """An existing run resumes with the settings that it began with, and no others."""
    outcome = dcal("train", *tasks[task], "--layer_decay=0.5", "--output_dir", undisturbed(task))
    assert outcome.status == 2 and "layer_decay (1.0 there, 0.5 here)" in outcome.err


@pytest.mark.parametrize("added", [[], ["--ema=0.8"]])
def test_lora_is_merged_into_the_saved_models(dcal, tasks, tmp_path, added):
    """The files are those of a plain model, and give the scores that the run has measured with LoRA applied."""
    run = tmp_path / "run"
    flags = [*tasks["fgvc"], "--lora_rank=4", "--glca_init=last_block", "--lr=1e-2", *added]
    outcome = dcal("train", *flags, "--output_dir", run)
    assert outcome.status == 0 and "M of them trained" in outcome.out, outcome.err
    saved = read_model(run / "last.safetensors")  # strict in names and shapes
    set_seed(saved.config.seed)
    initial = build_model(saved.config, len(saved.classes), pretrained=False).state_dict()
    for name, value in saved.model.state_dict().items():
        block = name.startswith(("backbone.blocks", "glca_block."))
        trained = (block and value.ndim == 2) or name.startswith(("backbone.head", "glca_head", "glca_norm"))
        assert torch.equal(value, initial[name]) != trained, name
        if block and value.ndim == 2:
            assert torch.linalg.matrix_rank(value.double() - initial[name].double(), atol=1e-5) <= 4, name
    evaluated = dcal("eval", run / "last.safetensors")
    assert f"{metrics_rows(run)[-1]['val/top1']:.2f}" in evaluated.out, evaluated.out


def test_lora_does_not_train_what_is_frozen_altogether(dcal, tasks, tmp_path):
    outcome = dcal("train", *tasks["fgvc"], "--freeze=all", "--lora_rank=4", "--output_dir", tmp_path / "run")
    assert_refused(outcome, "lora_rank 4", "freeze all")
