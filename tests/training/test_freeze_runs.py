"""Runs with frozen blocks: what stays to the bit, what the optimizer holds, and features that are cached."""

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

from dual_cross_attention.inference.model_files import build_model, read_model
from dual_cross_attention.training import feature_cache
from dual_cross_attention.training.checkpointing.checkpoints import list_checkpoints, read_state
from tests.helpers import assert_refused, assert_says, is_frozen, metrics_rows


@pytest.mark.parametrize("task", ["fgvc", "reid"])
@pytest.mark.parametrize("freeze", ["1", "all"])
def test_frozen_weights_stay_to_the_bit(dcal, tasks, tmp_path, task, freeze):
    """Against the weights that the run began with, with weight decay and momentum; all others have moved."""
    flags = [*tasks[task], "--epochs=1", "--weight_decay=0.5", f"--freeze={freeze}"]
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    assert_says(outcome.out, "M of them trained")
    assert_says(outcome.out, f"freeze {freeze}: frozen weights stay random")
    saved = read_model(tmp_path / "run" / "last.safetensors")
    set_seed(saved.config.seed)
    initial = build_model(saved.config, len(saved.classes), pretrained=False)
    blocks = freeze if freeze == "all" else int(freeze)
    trained = dict(saved.model.named_parameters())
    for name, parameter in initial.named_parameters():
        if not name.endswith("neck.bias"):
            assert torch.equal(parameter, trained[name]) == is_frozen(name, blocks), name
    held = read_state(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])["optimizer"]
    names = {name.removeprefix("model.") for group in held["param_groups"] for name in group["params"]}
    assert names == {name for name in trained if not is_frozen(name, blocks) and "neck.bias" not in name} | (
        {"weighting.w"} & names
    )
    assert {name.removeprefix("model.") for name in held["state"]} == names


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_cached_features_train_as_images_do(dcal, tasks, tmp_path, monkeypatch, task):
    """Where the features do not fit into memory, each step computes its own: the same but for rounding."""
    flags = [*tasks[task], "--freeze=all", "--epochs=2", "--flip=0.5"]
    cached = dcal("train", *flags, "--output_dir", tmp_path / "cached")
    assert cached.status == 0, cached.err
    assert_says(cached.out, "features of the training images", "features of the test images", "MiB")
    monkeypatch.setattr(feature_cache, "available_memory", lambda: 1000)
    anew = dcal("train", *flags, "--output_dir", tmp_path / "anew")
    assert anew.status == 0 and "computed anew in each step" in anew.out, anew.err
    ours, theirs = (metrics_rows(tmp_path / name) for name in ("cached", "anew"))
    for row, expected in zip(ours, theirs, strict=True):
        assert row.keys() == expected.keys() and "train/loss_glca" in row and "train/loss_pwca" not in row
        assert row["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-3)
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("cached", "anew"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)


def test_what_has_no_effect_is_said(dcal, tasks, tmp_path):
    flags = [*tasks["fgvc"], "--epochs=1", "--freeze=all", "--flip=0.2", "--pwca_every=2"]
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 0
    assert_says(outcome.out, "no effect: flip, pwca_every: with freeze all", "neither PWCA nor random augmentation")


def test_more_blocks_than_the_backbone_has(dcal, tasks, tmp_path):
    assert_refused(dcal("train", *tasks["fgvc"], "--freeze=3", "--output_dir", tmp_path / "run"), "freeze", "0 to 2")
    assert_refused(dcal("train", *tasks["fgvc"], "--freeze=most", "--output_dir", tmp_path / "run"), "--freeze", "all")
