"""Runs of every family by the command line: killed and resumed, on two ranks, compiled."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.helpers import metrics_rows
from tests.training.families import FAMILIES, flags_of

BY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
RUNS = {
    "all branches": [
        *("--ema=0.8", "--layer_decay=0.5", "--use_gradient_checkpointing=true", "--drop_path_rate=0.2"),
        *("--batch_size=6", "--gradient_accumulation_steps=2", "--pwca_start=0"),
    ],
    "lora": ["--lora_rank=2", "--freeze=1", "--glca_init=last_block", "--pwca_start=0"],
    "freeze all": ["--freeze=all"],
    "re-identification": ["--img_size", "64", "32", "--pwca_start=0", "--layer_decay=0.5"],
}


def without_backbone(flags):
    return [*(flag for flag in flags if not flag.startswith("--backbone")), "--sample_images=0", "--log_with=none"]


@pytest.mark.slow
@BY_FAMILY
@pytest.mark.parametrize("case", RUNS)
def test_a_killed_run_ends_with_equal_results(
    dcal, train_until, assert_same_results, small, small_reid, tmp_path, family, case
):
    """Killed in a backward pass of the second epoch; with rotary embeddings that are augmented at random."""
    more = {"rope_rescale_coords": 2.0} if family == "eva, mixed" else {}
    of_task = small_reid if case == "re-identification" else small
    flags = [*without_backbone(of_task), *flags_of(family, **more), *RUNS[case]]
    assert dcal("train", *flags, "--output_dir", tmp_path / "whole").status == 0
    number = {"all branches": 8, "re-identification": 5}.get(case, 7)  # micro-batches
    killed = train_until(
        [*flags, "--checkpoint_minutes=0"], tmp_path / "run", kind="backward, after", number=number, does="kill"
    )
    assert killed.status == -signal.SIGKILL, killed.err
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 0 and "resumed after epoch" in outcome.out, outcome.err
    assert_same_results(tmp_path / "run", tmp_path / "whole")


@pytest.fixture(scope="module")
def on_two_ranks(small, environment, tmp_path_factory):
    """`on_two_ranks(parallel)`: the folder of the runs of all families, and their flags."""
    done = {}

    def train(parallel):
        if parallel not in done:
            folder = tmp_path_factory.mktemp(parallel)
            flags = [*without_backbone(small), "--optimizer=sgd", "--lr=0.02", "--pwca_start=0", "--drop_path_rate=0.2"]
            script = Path(__file__).with_name("train_families.py")
            command = [sys.executable, script, folder, *flags, f"--parallel={parallel}"]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
            assert ended.returncode == 0, ended.stderr
            done[parallel] = folder, flags
        return done[parallel]

    return train


@pytest.mark.slow
@BY_FAMILY
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_compute_what_one_does(dcal, on_two_ranks, tmp_path, family, parallel):
    """All branches, two epochs; by SGD, since AdamW magnifies the rounding of gradients that are 0."""
    folder, flags = on_two_ranks(parallel)
    one = [*flags, *flags_of(family), "--gradient_accumulation_steps=2", "--output_dir", tmp_path]
    outcome = dcal("train", *one)
    assert outcome.status == 0, outcome.err
    ours, expected = (load_file(run / "last.safetensors") for run in (folder / family, tmp_path))
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(ours[name], value, atol=1e-5, rtol=0, msg=lambda message, n=name: f"{n}: {message}")
    for row, other in zip(metrics_rows(folder / family), metrics_rows(tmp_path), strict=True):
        assert row == pytest.approx(other, abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("family", ["eva, mixed", "cait", "swin"])
def test_inductor_compiles_every_kind_of_block(dcal, small, tmp_path, family):
    rows = []
    for compiled in ("false", "true"):
        run = [*without_backbone(small), *flags_of(family), "--epochs=1", "--pwca_start=0", f"--compile={compiled}"]
        outcome = dcal("train", *run, "--output_dir", tmp_path / compiled)
        assert outcome.status == 0, outcome.err
        rows += metrics_rows(tmp_path / compiled)
    assert rows[1]["train/loss"] == pytest.approx(rows[0]["train/loss"], rel=1e-3)
