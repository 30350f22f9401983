"""Going on: from what, with which settings, and into which folder."""

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

from dual_cross_attention.training.checkpoints import MANIFEST, PROGRESS, STATE, list_checkpoints
from dual_cross_attention.training.run_folder import RunFolder


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

DAMAGE = {
    "half a state": lambda path: os.truncate(path / STATE, (path / STATE).stat().st_size // 2),
    "other progress": lambda path: (path / PROGRESS).write_text("{}"),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "a manifest of nothing": lambda path: (path / MANIFEST).write_text("\0" * 100),
    "nothing": lambda path: [file.unlink() for file in path.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_checkpoint_before_a_damaged_one_is_used(dcal, tasks, undisturbed, assert_same_results, run, damage):
    damaged = run / "checkpoints" / "epoch_0002_step_00000007"
    damage(damaged)
    outcome = dcal("train", *tasks["fgvc"], "--output_dir", run)
    assert outcome.status == 0, outcome.err
    (warning,) = (line for line in outcome.out.splitlines() if line.startswith("warning: "))
    assert warning.startswith(f"warning: checkpoint '{damaged}' is damaged (")
    assert warning.endswith("it is kept as epoch_0002_step_00000007.damaged, and the one before is used")
    assert damaged.with_name(f"{damaged.name}.damaged").is_dir() and not damaged.exists()
    assert "resumed after epoch 2" in outcome.out.splitlines()
    assert_same_results(run, undisturbed("fgvc"))


def test_all_damaged(dcal, tasks, run):
    for path in list_checkpoints(run / "checkpoints"):
        DAMAGE["half a state"](path)
    before = sorted(run.rglob("*"))
    outcome = dcal("train", *tasks["fgvc"], "--output_dir", run)
    assert outcome.status == 2
    assert f"none of the 2 checkpoints in '{run / 'checkpoints'}' is whole (state.pt has " in outcome.err
    assert sorted(run.rglob("*")) == before


def test_a_damaged_checkpoint_of_another_run_stays_there(dcal, tasks, run, tmp_path):
    damaged = run / "checkpoints" / "epoch_0002_step_00000007"
    DAMAGE["half a state"](damaged)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    outcome = dcal("train", *tasks["fgvc"], "--resume", run, "--output_dir", tmp_path / "on")
    assert outcome.status == 0, outcome.err
    assert "it is passed over, and the one before is used" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


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
def test_progress_from_hell_is_told_in_a_line(dcal, tasks, run, change_to):
    """Of the right kind, and wrong: it is refused, or does no harm."""
    newest = run / "checkpoints" / "epoch_0002_step_00000007"
    progress = json.loads((newest / PROGRESS).read_text()) | change_to
    change(newest, PROGRESS, json.dumps(progress).encode())
    outcome = dcal("train", *tasks["fgvc"], "--output_dir", run)
    assert outcome.status in (0, 2)
    assert len(outcome.err.splitlines()) == (outcome.status == 2)


@pytest.mark.parametrize("state", [[], {}, {"task": 5}, {"task": {}, "optimizer": {}, "scaler": None}], ids=str)
def test_a_state_of_something_else_is_told_in_a_line(dcal, tasks, run, state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    change(run / "checkpoints" / "epoch_0002_step_00000007", STATE, (tmp_path / "state.pt").read_bytes())
    outcome = dcal("train", *tasks["fgvc"], "--output_dir", run)
    assert outcome.status == 2
    assert outcome.err.startswith("dcal: error: cannot resume from '") and len(outcome.err.splitlines()) == 1


def test_other_data_is_refused(dcal, tasks, run, make_pictures, tmp_path):
    """The order of an epoch follows from the number of pictures: with more of them, nothing would be as it was."""
    more = make_pictures(tmp_path / "more")
    (more / "train" / "ant" / "12.png").write_bytes((more / "train" / "ant" / "00.png").read_bytes())
    outcome = dcal("train", *tasks["fgvc"], f"--data_root={more}", "--output_dir", run)
    assert outcome.status == 2
    assert "the run was trained on 36 pictures, and there are 37 now" in outcome.err


def test_checkpoints_without_settings_are_not_overwritten(dcal, tasks, run):
    """They would be taken up by the next start as if they were of the new run."""
    (run / "config.yaml").unlink()
    outcome = dcal("train", *tasks["fgvc"], "--output_dir", run)
    assert outcome.status == 2 and "holds checkpoints, but no config.yaml" in outcome.err
    assert len(list_checkpoints(run / "checkpoints")) == 2


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


# --- resume: never, a path ---


def test_never(dcal, tasks, run, tmp_path):
    flags = [*tasks["fgvc"], "--resume=never", "--output_dir"]
    refused = dcal("train", *flags, run)
    assert refused.status == 2 and "holds a run already: take another --output_dir, or --resume auto" in refused.err
    begun = dcal("train", *flags, tmp_path / "new")
    assert begun.status == 0 and "resumed" not in begun.out


@pytest.mark.parametrize("source", [".", "checkpoints/epoch_0002", "checkpoints/epoch_0002_step_00000007"])
def test_a_path_goes_on_in_a_folder_of_its_own(dcal, tasks, undisturbed, run, tmp_path, source):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = dcal("train", *tasks["fgvc"], "--resume", run / source, "--output_dir", tmp_path / "on")
    assert outcome.status == 0, outcome.err
    assert ("resumed after epoch 2, step 1 of 3" in outcome.out) == ("0002" not in source or "step" in source)
    ours, theirs = (load_file(folder / "last.safetensors") for folder in (tmp_path / "on", undisturbed("fgvc")))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_earlier_checkpoint_of_the_same_run(train_until, tasks, undisturbed, assert_same_results, run):
    """What came later is set aside: else it would be the newest that is kept, and that the next start goes on from."""
    earlier = run / "checkpoints" / "epoch_0002"
    flags = [*tasks["fgvc"], "--checkpoint_minutes=0", f"--resume={earlier}"]
    killed = train_until(flags, run, kind="backward, after", number=4, does="kill")
    assert killed.status == -signal.SIGKILL
    assert f"checkpoint '{earlier}_step_00000007' is later than '{earlier}'" in killed.out
    assert (run / "checkpoints" / "epoch_0002_step_00000007.left").is_dir()
    assert train_until(tasks["fgvc"], run).status == 0
    assert_same_results(run, undisturbed("fgvc"))


# --- what users read, after a kill ---


@pytest.mark.parametrize(
    ("name", "how"),
    [*product(("best.safetensors", "last.safetensors"), ("missing", "empty", "older")), ("metrics.jsonl", "older")],
)
def test_results_that_are_missing_or_of_before_are_mended(
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
    """Processes that read pictures live on, as long as a disk hangs, and must not keep the next start out."""
    run, flags = tmp_path / "run", [*tasks["fgvc"], "--num_workers=2"]
    killed = train_until(flags, run, kind="picture of epoch 2", number=10, does="SIGKILL and hang")
    assert killed.status == -signal.SIGKILL
    again = train_until(flags, run)
    assert again.status == 0, again
    assert_same_results(run, undisturbed("fgvc"))


def test_a_second_training_is_kept_out(train_until, dcal, tasks, undisturbed, tmp_path):
    run = Path(shutil.copytree(undisturbed("fgvc"), tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name[0] != "."}
    first = RunFolder(run)
    first.lock()
    for outcome in (dcal("train", *tasks["fgvc"], "--output_dir", run), train_until(tasks["fgvc"], run)):
        assert outcome.status == 2
        assert f"'{run}' is in use: process {os.getpid()} on " in outcome.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name[0] != "."} == before
    first.unlock()
    assert dcal("train", *tasks["fgvc"], "--output_dir", run).status == 0
