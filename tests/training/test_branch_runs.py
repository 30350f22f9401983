"""Runs whose branches start late: they resume bit for bit, and their files say what is trained."""

import json

import pytest
import torch
from safetensors.torch import load_file

from dual_cross_attention.inference.model_files import read_model, save_model
from tests.helpers import any_says

CHEAPER = ["--pwca_every=2", "--pwca_blocks=1", "--distractor_tokens=0.5"]
LATE = ["--glca_start=0.5", "--pwca_start=0.4", "--pwca_warmup=0.5", *CHEAPER]
IN_THE_THIRD_EPOCH = ["--glca_start=0.7", "--pwca_start=0.7", "--pwca_warmup=0"]
NEVER = ["--glca_start=1", "--pwca_start=1", "--pwca_warmup=0"]


@pytest.fixture(scope="module")
def late(tasks):
    """Flags by task of a training of 3 epochs in whose second one PWCA and GLCA start."""
    return {task: [*flags, *LATE] for task, flags in tasks.items()}


@pytest.mark.parametrize(("task", "number"), [("fgvc", 5), ("fgvc", 8), ("reid", 3), ("reid", 6)])
def test_an_interrupted_run_ends_with_equal_results(
    dcal, train_until, late, assert_same_results, tmp_path, task, number
):
    """Before any branch starts, and in PWCA's first step: the optimizer has no state of GLCA's parameters then."""
    assert dcal("train", *late[task], "--output_dir", tmp_path / "whole").status == 0
    ended = train_until(
        [*late[task], "--checkpoint_minutes=0"], tmp_path / "run", kind="backward, after", number=number, does="SIGTERM"
    )
    assert ended.status == 75, ended.err
    outcome = dcal("train", *late[task], "--output_dir", tmp_path / "run")
    assert outcome.status == 0 and "resumed after epoch" in outcome.out, outcome.err
    assert_same_results(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_rows_and_models_of_a_late_glca(dcal, late, tmp_path, task):
    run_folder = tmp_path / "run"
    outcome = dcal("train", *late[task], *IN_THE_THIRD_EPOCH, "--output_dir", run_folder)
    assert outcome.status == 0, outcome.err
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    score = "top1" if task == "fgvc" else "mAP"
    for row in rows[:2]:  # everything starts in the third epoch
        assert row.keys() == rows[2].keys() - {"train/loss_glca", "train/loss_pwca"}
        assert row[f"val/{score}"] == row[f"val/{score}_sa"]
        assert row["train/w_glca"] == row["train/w_pwca"] == 0
        assert row["train/loss"] == pytest.approx(0.5 * row["train/loss_sa"], rel=0.1)
    assert rows[2]["train/w_glca"] != 0
    initial = load_file(run_folder / "last.safetensors")
    assert read_model(run_folder / "last.safetensors").model.glca_is_trained
    best = read_model(run_folder / "best.safetensors")
    assert best.model.glca_is_trained == (best.metrics["epoch"] > 2)
    for epoch, trained in ((1, False), (2, False), (3, True)):
        save_model(tmp_path / "m.safetensors", initial, best.config, best.classes, {"epoch": epoch})
        assert read_model(tmp_path / "m.safetensors").model.glca_is_trained == trained


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_before_its_start_glca_stays_as_it_began(dcal, late, tmp_path, task):
    """No weight decay, no running statistics: the whole branch, and its w."""
    for name, epochs in (("long", 3), ("short", 1)):
        flags = [*late[task], *NEVER, f"--epochs={epochs}", "--warmup_epochs=0"]
        assert dcal("train", *flags, "--output_dir", tmp_path / name).status == 0
    ours, theirs = (load_file(tmp_path / name / "last.safetensors") for name in ("long", "short"))
    for name in ours:
        if name.startswith("glca") and "num_batches" not in name:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)


def test_a_start_is_part_of_the_run(dcal, late, tmp_path):
    assert dcal("train", *late["fgvc"], "--output_dir", tmp_path / "run").status == 0
    outcome = dcal("train", *late["fgvc"], "--glca_start=0.25", "--output_dir", tmp_path / "run")
    assert outcome.status == 2 and "glca_start (0.5 there, 0.25 here)" in outcome.err


@pytest.mark.parametrize("task", ["fgvc", "reid"])
@pytest.mark.parametrize("local_queries", ["random", "cross"])
def test_local_queries_and_blocks_are_of_the_run_and_its_files(
    dcal, train_until, tasks, assert_same_results, tmp_path, task, local_queries
):
    flags = [*tasks[task], "--local_queries", local_queries, "--glca_blocks=2", "--epochs=1", "--warmup_epochs=0"]
    assert dcal("train", *flags, "--output_dir", tmp_path / "whole").status == 0
    ended = train_until(
        [*flags, "--checkpoint_minutes=0"], tmp_path / "run", kind="backward, after", number=3, does="SIGTERM"
    )
    assert ended.status == 75, ended.err
    assert dcal("train", *flags, "--output_dir", tmp_path / "run").status == 0
    assert_same_results(tmp_path / "run", tmp_path / "whole")
    saved = read_model(tmp_path / "run")
    assert (saved.model.local_queries, len(saved.model.glca_blocks)) == (local_queries, 2)
    assert dcal("eval", tmp_path / "run", "--device=cpu", f"--json={tmp_path / 'scores.json'}").status == 0
    score = "top1" if task == "fgvc" else "mAP"
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores[score] == pytest.approx(saved.metrics[f"val/{score}"], abs=1e-3)


@pytest.mark.parametrize("task", ["fgvc", "reid"])
@pytest.mark.parametrize("loss_weights", ["fixed", "sum", "mean"])
def test_losses_without_learned_weights(dcal, train_until, tasks, assert_same_results, tmp_path, task, loss_weights):
    """The total of the row is the formula of its losses, there is no w, and the run resumes."""
    flags = [*tasks[task], "--loss_weights", loss_weights, "--epochs=1", "--warmup_epochs=0", "--pwca_start=0"]
    assert dcal("train", *flags, "--output_dir", tmp_path / "whole").status == 0
    (row,) = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert not [name for name in row if name.startswith("train/w_")]
    losses = [row[f"train/loss_{branch}"] for branch in ("sa", "glca", "pwca")]
    expected = {"fixed": sum(losses) / 2, "sum": sum(losses), "mean": sum(losses) / 3}
    assert row["train/loss"] == pytest.approx(expected[loss_weights], rel=1e-5)
    ended = train_until(
        [*flags, "--checkpoint_minutes=0"], tmp_path / "run", kind="backward, after", number=3, does="SIGTERM"
    )
    assert ended.status == 75, ended.err
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 0 and "no effect" not in outcome.out
    assert_same_results(tmp_path / "run", tmp_path / "whole")


def test_unused_bounds_are_warned_about(dcal, tasks, tmp_path):
    flags = [*tasks["fgvc"], "--loss_weights=mean", "--weight_bound=1", "--epochs=1"]
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert any_says(outcome.out.splitlines(), "no effect: weight_bound", "loss_weights mean")
