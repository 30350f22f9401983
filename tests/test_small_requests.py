"""Trainings shorter or smaller than the defaults are made for: what shortens itself, and what is said."""

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file


def learning_rates(run):
    return [json.loads(line)["lr"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def without(flags, *names):
    return [flag for flag in flags if not flag.startswith(tuple(f"--{name}=" for name in names))]


SHORTENED = re.compile(r"warmup_epochs (\S+) is longer than the training: shortened to its (\d+) epochs?\b")


@pytest.mark.parametrize(("epochs", "said"), [(1, ("5", "1")), (2, ("5", "2")), (5, None)])
def test_the_default_warm_up_of_reid_in_a_short_training(dcal, small_reid, tmp_path, epochs, said):
    """The default is 5 epochs; what is shortened ends at the peak, as a warm-up of all epochs does."""
    flags = [*without(small_reid, "warmup_epochs", "epochs"), "--eval_every=10", "--lr=1e-3", f"--epochs={epochs}"]
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert (outcome.status, outcome.err) == (0, "")
    found = SHORTENED.search(" ".join(outcome.out.split()))
    assert (found and found.groups()) == said
    given = dcal("train", *flags, f"--warmup_epochs={epochs}", "--output_dir", tmp_path / "given")
    assert given.status == 0 and "is longer than" not in given.out
    assert learning_rates(tmp_path / "run") == learning_rates(tmp_path / "given")
    assert learning_rates(tmp_path / "run")[-1] == pytest.approx(1e-3)
    ours, theirs = (load_file(tmp_path / name / "last.safetensors") for name in ("run", "given"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # Evaluated although eval_every is longer than the training; and the same command again is the same run.
    assert any(
        name.startswith("val/") for name in json.loads((tmp_path / "run/metrics.jsonl").read_text().split("\n")[-2])
    )
    again = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert again.status == 0 and "nothing to do" in again.out


def test_a_warm_up_that_is_asked_for_in_a_training_of_classes(dcal, small, tmp_path):
    outcome = dcal("train", *small, "--epochs=1", "--warmup_epochs=2.5", "--output_dir", tmp_path)
    assert (outcome.status, outcome.err) == (0, "")
    assert SHORTENED.search(" ".join(outcome.out.split())).groups() == ("2.5", "1")
    assert learning_rates(tmp_path)[-1] == pytest.approx(1e-3)


def test_the_settings_keep_the_warm_up_asked_for(dcal, small, tmp_path):
    """A longer training that resumes from a short one is not refused, and is what config.yaml says."""
    flags = [*without(small, "epochs"), "--warmup_epochs=2"]
    assert dcal("train", *flags, "--epochs=1", "--output_dir", tmp_path / "short").status == 0
    assert yaml.safe_load((tmp_path / "short/config.yaml").read_text())["warmup_epochs"] == 2.0
    on = dcal("train", *flags, "--epochs=4", "--resume", tmp_path / "short", "--output_dir", tmp_path / "long")
    assert on.status == 0, on.err
    assert "is longer than" not in on.out
    rates = learning_rates(tmp_path / "long")
    # Epochs 2 to 4 of a schedule of 4: half of them warm-up, up to the peak, then the cosine down to 0.
    assert rates[0] == pytest.approx(1e-3) and rates[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("toy", [["--task=fgvc"], ["--task=reid"]])
def test_toy_configs_take_one_epoch(toy):
    from dual_cross_attention.configs.parse import parse_config

    for epochs in (1, 2):
        config = parse_config([*toy, "--dataset=toy", "--epochs", f"{epochs}"])
        assert config.warmup_epochs == {"fgvc": 1.0, "reid": 2.0}[config.task]


def test_fewer_identities_than_a_batch_takes(dcal, small_reid, tmp_path):
    """The default batch is 16 identities x 4; there are 4: the line says which batch there can be, and it trains."""
    flags = without(small_reid, "batch_size", "images_per_identity")
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    said = re.search(r"needs 16 identities, and there are 4 .*take (--batch_size) (\d+) or less", outcome.err)
    assert said[2] == "16"
    assert dcal("train", *flags, "--epochs=1", *said.groups(), "--output_dir", tmp_path / "run").status == 0


def test_more_accumulation_than_batches(dcal, small_reid, tmp_path):
    outcome = dcal("train", *small_reid, "--epochs=1", "--gradient_accumulation_steps=64", "--output_dir", tmp_path)
    assert (outcome.status, outcome.err) == (0, "")
    assert len(learning_rates(tmp_path)) == 1
