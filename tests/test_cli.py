"""The command line as a user types it: help, the toy task without arguments, and several processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dual_cross_attention.configs import FGVC_CONFIGS
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.data import FGVC_DATASETS, draw_toy, load_fgvc
from tests.helpers import rows_of


def test_help_of_eval_and_of_all(dcal):
    assert all(flag in dcal("eval", "--help").out for flag in ("RUN_OR_MODEL", "--data_root", "--json", "--precision"))
    for flags in ([], ["--help"], ["-h"]):
        outcome = dcal(*flags)
        assert outcome.status == 0 and "train" in outcome.out and "eval" in outcome.out
    assert dcal("--version").out.count(".") == 2


def test_data_sets_have_settings_and_loaders():
    assert list(FGVC_CONFIGS) == list(FGVC_DATASETS)


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
