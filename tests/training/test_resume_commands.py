"""A run that resumes, is refused, or gets a folder of its own, by the command line."""

import shutil
from pathlib import Path

import pytest
import torch

from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.training.checkpointing.checkpoints import read_progress, read_state, write_checkpoint
from dual_cross_attention.training.checkpointing.manager import CheckpointManager
from tests.helpers import assert_same_run, rows_of


def snapshot(run: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a run: when it was written, and what it holds."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}


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
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


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
