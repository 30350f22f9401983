"""Resuming from end to end: a resumed run has the results of an undisturbed one, to the bit.

What is decided, and from what, is in `test_resume_decisions.py` and `test_run_snapshot.py`, without a training.
"""

import hashlib
import json
import os
import shutil
import signal
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dual_cross_attention.cli import main
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.checkpointing.checkpoints import MANIFEST, PROGRESS, STATE, list_checkpoints
from dual_cross_attention.training.run_lock import RunLock
from tests.helpers import any_says


@pytest.fixture(scope="session")
def interrupted(train_until, tasks, tmp_path_factory) -> Path:
    """A run that was asked to leave in its third epoch, with a checkpoint every step; no test changes it."""
    run = tmp_path_factory.mktemp("interrupted") / "run"
    flags = [*tasks["fgvc"], "--checkpoint_minutes=0"]
    assert train_until(flags, run, kind="backward, after", number=15, does="SIGTERM").status == 75
    names = [path.name for path in list_checkpoints(run / "checkpoints")]
    assert names == ["epoch_0002", "epoch_0002_step_00000007"]
    return run


@pytest.fixture
def run(interrupted, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def change(checkpoint: Path, file: str, content: bytes) -> None:
    """Another content of a checkpoint's file, which its manifest agrees with."""
    (checkpoint / file).write_bytes(content)
    files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    files[file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / MANIFEST).write_text(json.dumps({"files": files}))


# --- damage ---


def test_the_checkpoint_before_a_damaged_one_is_used(dcal, tasks, undisturbed, assert_same_results, run):
    damaged = run / "checkpoints" / "epoch_0002_step_00000007"
    os.truncate(damaged / STATE, (damaged / STATE).stat().st_size // 2)
    outcome = dcal("train", *tasks["fgvc"], "--output_dir", run)
    assert outcome.status == 0, outcome.err
    (warning,) = (line for line in outcome.out.splitlines() if line.startswith("warning: "))
    assert f"'{damaged}' is damaged" in warning and "epoch_0002_step_00000007.damaged" in warning
    assert damaged.with_name(f"{damaged.name}.damaged").is_dir() and not damaged.exists()
    assert "resumed after epoch 2" in outcome.out.splitlines()
    assert_same_results(run, undisturbed("fgvc"))


@pytest.mark.parametrize(
    "change_to",
    [
        {"step_in_epoch": 10**6},
        {"batches_per_step": 10**9},
        {"epoch": 10**12},
        {"step": 2**52},
        {"best": {"epoch": 2**50, "val/top1": float("nan")}},
        {"log": {"sums": {"loss": [float("nan"), 0.0]}, "latest": {"loss": float("inf")}}},
        {"unreadable": {"a\nb": "c" * 1000}},
        {"classes": ["other"]},
        {"rows": [{"epoch": 7}]},
    ],
    ids=str,
)
def test_invalid_progress_is_an_error_of_one_line(dcal, tasks, run, change_to):
    """Of the right kind, and wrong: it is refused, or does no harm."""
    newest = run / "checkpoints" / "epoch_0002_step_00000007"
    progress = json.loads((newest / PROGRESS).read_text()) | change_to
    change(newest, PROGRESS, json.dumps(progress).encode())
    outcome = dcal("train", *tasks["fgvc"], "--output_dir", run)
    assert outcome.status in (0, 2)
    assert len(outcome.err.splitlines()) == (outcome.status == 2)


@pytest.mark.parametrize("state", [[], {}, {"task": 5}, {"task": {}, "optimizer": {}, "scaler": None}], ids=str)
def test_an_invalid_state_is_an_error_of_one_line(dcal, tasks, run, state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    change(run / "checkpoints" / "epoch_0002_step_00000007", STATE, (tmp_path / "state.pt").read_bytes())
    outcome = dcal("train", *tasks["fgvc"], "--output_dir", run)
    assert outcome.status == 2
    assert outcome.err.startswith("dcal: error: cannot resume from '") and len(outcome.err.splitlines()) == 1


# --- settings ---


def test_other_settings_are_refused_with_all_differences(dcal, tasks, run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = dcal(
        "train", *tasks["fgvc"], "--lr=0.5", "--seed=7", "--gradient_accumulation_steps=1", "--output_dir", run
    )
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    for said in (
        "lr (1e-05 there, 0.5 here)",
        "seed (3 there, 7 here)",
        "gradient_accumulation_steps (2 there, 1 here)",
    ):
        assert said in line
    assert line.count(" there, ") == 3
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "flags", [["--num_workers=2"], ["--cache=ram"], ["--use_gradient_checkpointing=true"], ["--eval_batch_size=5"]]
)
def test_what_says_how_it_runs_may_change(dcal, tasks, undisturbed, run, flags):
    """Reading processes and a cache change no bit; the others compute the same within rounding."""
    assert dcal("train", *tasks["fgvc"], *flags, "--output_dir", run).status == 0
    ours, theirs = (load_file(folder / "last.safetensors") for folder in (run, undisturbed("fgvc")))
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= (0 if "workers" in flags[0] or "cache" in flags[0] else 1e-6), name


# --- --resume PATH ---


@pytest.mark.parametrize("source", [".", "checkpoints/epoch_0002", "checkpoints/epoch_0002_step_00000007"])
def test_a_path_resumes_in_a_new_folder(dcal, tasks, undisturbed, run, tmp_path, source):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = dcal("train", *tasks["fgvc"], "--resume", run / source, "--output_dir", tmp_path / "on")
    assert outcome.status == 0, outcome.err
    assert ("resumed after epoch 2, step 1 of 3" in outcome.out) == ("0002" not in source or "step" in source)
    ours, theirs = (load_file(folder / "last.safetensors") for folder in (tmp_path / "on", undisturbed("fgvc")))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_earlier_checkpoint_of_the_same_run(train_until, tasks, undisturbed, assert_same_results, run):
    """What came later is set aside: else it would be the newest that is kept, and that the next start resumes from."""
    earlier = run / "checkpoints" / "epoch_0002"
    flags = [*tasks["fgvc"], "--checkpoint_minutes=0", f"--resume={earlier}"]
    killed = train_until(flags, run, kind="backward, after", number=4, does="kill")
    assert killed.status == -signal.SIGKILL
    assert any_says(killed.out.splitlines(), f"'{earlier}_step_00000007'", f"later than '{earlier}'")
    assert (run / "checkpoints" / "epoch_0002_step_00000007.left").is_dir()
    assert train_until(tasks["fgvc"], run).status == 0
    assert_same_results(run, undisturbed("fgvc"))


def test_a_renamed_checkpoint_of_the_same_run_is_refused(dcal, tasks, run):
    later = run / "checkpoints" / "epoch_0002_step_00000007"
    left = later.rename(later.with_name(f"{later.name}.left"))
    outcome = dcal("train", *tasks["fgvc"], f"--resume={left}", "--output_dir", run)
    assert outcome.status == 2 and "rename it to epoch_NNNN" in outcome.err and len(outcome.err.splitlines()) == 1


def test_a_restart_does_not_go_back_again(train_until, tasks, undisturbed, assert_same_results, run):
    """Typed again, as by `torchrun --max-restarts`, the path of an earlier checkpoint is where the run went back to."""
    earlier = run / "checkpoints" / "epoch_0002"
    flags = [*tasks["fgvc"], "--checkpoint_minutes=0", f"--resume={earlier}"]
    # After a later checkpoint is set aside, and resumed_from.json, data.json and config.yaml, the first checkpoint.
    assert train_until(flags, run, kind="rename, after", number=5, does="kill").status == -signal.SIGKILL
    on = train_until(flags, run)
    assert on.status == 0, on.err
    assert "resumed after epoch 2, step 1 of 3" in on.out and ".left1" not in on.out
    assert_same_results(run, undisturbed("fgvc"))


# --- the same path again ---


@pytest.fixture(scope="session")
def went_on(interrupted, tasks, tmp_path_factory) -> Path:
    """An undisturbed run that began from the interrupted one; no test changes it."""
    on = tmp_path_factory.mktemp("went-on") / "on"
    assert main(["train", *tasks["fgvc"], f"--resume={interrupted}", f"--output_dir={on}"]) == 0
    return on


ENDS = {  # of the first start: what it has written by then
    "before its settings": ("rename, after", 1, ["resumed_from.json"]),
    "before its first checkpoint": ("backward, before", 3, ["config.yaml", "data.json", "resumed_from.json"]),
    "after it": ("rename, after", 4, ["checkpoints", "config.yaml", "data.json", "resumed_from.json"]),
}


@pytest.fixture
def killed(train_until, tasks, run, tmp_path):
    """`killed(moment)` → the folder of a run that began from the copy, and was killed then."""

    def kill(moment: str) -> Path:
        kind, number, written = ENDS[moment]
        minutes = 0 if moment == "after it" else 15
        flags = [*tasks["fgvc"], f"--checkpoint_minutes={minutes}", f"--resume={run}"]
        assert train_until(flags, tmp_path / "on", kind=kind, number=number).status == -signal.SIGKILL
        there = {path.name for path in (tmp_path / "on").iterdir() if path.name[0] != "." and "events" not in path.name}
        assert sorted(there - {"tensorboard"}) == written
        return tmp_path / "on"

    return kill


@pytest.mark.parametrize("moment", ENDS)
def test_the_same_path_again_resumes(train_until, tasks, went_on, assert_same_results, run, killed, moment):
    """Also if the run that it began from has more checkpoints by then."""
    on = killed(moment)
    assert train_until(tasks["fgvc"], run).status == 0
    flags = [*tasks["fgvc"], "--resume", run]
    resumed = train_until(flags, on)
    assert resumed.status == 0, resumed
    step = {"after it": "step 2 of 3"}.get(moment, "step 1 of 3")
    assert f"resumed after epoch 2, {step}" in resumed.out.splitlines()
    assert_same_results(on, went_on)
    ended = train_until(flags, on)
    assert (ended.status, "nothing to do" in ended.out) == (0, True), ended


def test_what_it_began_from_is_gone(dcal, tasks, went_on, assert_same_results, run, killed):
    """It neither starts from scratch, nor from another checkpoint."""
    on, checkpoint = killed("before its first checkpoint"), run / "checkpoints" / "epoch_0002_step_00000007"
    elsewhere = checkpoint.rename(run / "elsewhere")
    refused = dcal("train", *tasks["fgvc"], "--resume", run, "--output_dir", on)
    assert refused.status == 2 and len(refused.err.splitlines()) == 1
    assert f"'{on}' began from '{checkpoint}'" in refused.err and "gone or damaged" in refused.err
    elsewhere.rename(checkpoint)
    assert dcal("train", *tasks["fgvc"], "--output_dir", on).status == 0
    assert_same_results(on, went_on)


def test_a_best_model_from_before_the_first_checkpoint_does_not_count(
    train_until, tasks, went_on, assert_same_results, run, tmp_path
):
    """A full disk had room for models alone: the best row is still not that of the run it began from."""
    flags, full = [*tasks["fgvc"], f"--resume={run}"], {"does": "no space from here", "end": ("result, after", 2)}
    killed = train_until(flags, tmp_path / "on", kind="write state or progress", **full)
    assert killed.status == -signal.SIGKILL, killed
    assert (tmp_path / "on" / "best.safetensors").is_file() and not list_checkpoints(tmp_path / "on" / "checkpoints")
    again = train_until(flags, tmp_path / "on")
    assert again.status == 0 and "best epoch 3 of 3" in again.out, again
    assert_same_results(tmp_path / "on", went_on)


# --- what users read, after a kill ---


@pytest.mark.parametrize(
    ("name", "how"),
    [*product(("best.safetensors", "last.safetensors"), ("missing", "empty", "older")), ("metrics.jsonl", "older")],
)
def test_missing_and_outdated_results_are_completed(
    train_until, tasks, undisturbed, assert_same_results, tmp_path, name, how
):
    """As a power cut after a checkpoint leaves them; the checkpoints of the last and the best epoch have all of it."""
    run = Path(shutil.copytree(undisturbed("fgvc"), tmp_path / "run"))
    file = run / name
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif name == "metrics.jsonl":
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    else:
        other = load_file(file)
        save_file({key: value * 0 for key, value in other.items()}, file, {"metrics": '{"epoch": 1}'})
    # The last checkpoint as it was when its results were still to come.
    last = run / "checkpoints" / "epoch_0003"
    progress = json.loads((last / PROGRESS).read_text())
    assert [row["epoch"] for row in progress["rows"]] == [3]
    ended = train_until(tasks["fgvc"], run)
    assert (ended.status, "nothing to do" in ended.out) == (0, True), ended
    assert_same_results(run, undisturbed("fgvc"))


def test_a_folder_is_free_at_once_after_a_kill(train_until, tasks, undisturbed, assert_same_results, tmp_path):
    """Processes that read images live on, as long as a disk hangs, and must not keep the next start out."""
    run, flags = tmp_path / "run", [*tasks["fgvc"], "--num_workers=2"]
    killed = train_until(flags, run, kind="image of epoch 2", number=10, does="SIGKILL and hang")
    assert killed.status == -signal.SIGKILL
    again = train_until(flags, run)
    assert again.status == 0, again
    assert_same_results(run, undisturbed("fgvc"))


def test_a_second_training_is_kept_out(train_until, dcal, tasks, undisturbed, tmp_path):
    run = Path(shutil.copytree(undisturbed("fgvc"), tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name[0] != "."}
    first = RunLock(RunFolder(run))
    first.acquire()
    for outcome in (dcal("train", *tasks["fgvc"], "--output_dir", run), train_until(tasks["fgvc"], run)):
        assert outcome.status == 4  # which a sweep knows
        assert f"'{run}' is in use: process {os.getpid()} " in outcome.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name[0] != "."} == before
    first.release()
    assert dcal("train", *tasks["fgvc"], "--output_dir", run).status == 0


def test_bf16_resumes_to_the_bit(train_until, tasks, assert_same_results, tmp_path):
    """What `--precision auto` takes on a CPU that multiplies bf16."""
    flags = [*tasks["fgvc"], "--precision=bf16"]
    assert main(["train", *flags, f"--output_dir={tmp_path / 'undisturbed'}"]) == 0
    run = tmp_path / "run"
    assert train_until(flags, run, kind="backward, after", number=15, does="SIGTERM").status == 75
    assert train_until(flags, run).status == 0
    assert_same_results(run, tmp_path / "undisturbed")
