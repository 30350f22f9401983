"""Models and data that `dcal eval` refuses, in one line."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers import assert_says


def test_evaluating_invalid_models(dcal, refused, small, make_images, tmp_path):
    assert_says(refused("eval", tmp_path), f"'{tmp_path}'", "best.safetensors")
    (tmp_path / "notes.txt").write_text("no model")
    assert "as .safetensors" in refused("eval", tmp_path / "notes.txt")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    assert "no settings and class names" in refused("eval", tmp_path / "foreign.safetensors")

    run = tmp_path / "run"
    dcal("train", *small, "--epochs=1", "--output_dir", run)
    best = run / "best.safetensors"
    with safe_open(best, framework="pt") as file:
        metadata = file.metadata()

    def with_header(**changes):
        save_file(load_file(best), tmp_path / "changed.safetensors", metadata | changes)
        return refused("eval", tmp_path / "changed.safetensors")

    config = json.loads(metadata["config"])
    assert "no settings" in with_header(config="{")
    assert "no settings" in with_header(config="[1]")
    assert "no settings" in with_header(classes="3")
    assert "unknown setting 'extra'" in with_header(config=json.dumps(config | {"extra": 1}))
    assert "unknown task 'other'" in with_header(config=json.dumps(config | {"task": "other"}))
    assert_says(with_header(config=json.dumps(config | {"batch_size": "x"})), "batch_size: ", "whole number")
    assert "does not fit" in with_header(config=json.dumps(config | {"ablation": "sa_only"}))
    assert "does not fit" in with_header(classes='["a", "b"]')

    assert_says(refused("eval", run, "--batch_size", 0), "eval_batch_size: ", "at least 1", "got 0")
    assert "it does not exist" in refused("eval", run, "--data_root", tmp_path / "nowhere")
    other = make_images(tmp_path / "other")
    for split in ("train", "val"):
        (other / split / "bee").rename(other / split / "wasp")
    message = refused("eval", run, "--data_root", other)
    assert_says(message, "3 classes (ant, bee, cat)", "wasp")
    (tmp_path / "file").mkdir()
    assert_says(refused("eval", run, "--json", tmp_path / "file"), "--json", "a file to write")
    best.write_bytes(best.read_bytes()[:5000])
    assert "cannot read" in refused("eval", run)
