"""A disk without room, or a folder that cannot be written to: the run says so, continues, and can be finished later."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dual_cross_attention.training.checkpointing.checkpoints import list_checkpoints, verify
from tests.helpers import assert_says

EVERYTHING = {
    "part of a checkpoint": ("write state or progress", 3000),
    "flushing": ("flush, before", 20),
    "renaming": ("rename, before", 6),
    "a model": ("write model, before", 2),
    "metrics": ("write text", 4),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), EVERYTHING.values(), ids=EVERYTHING)
def test_no_room_once(train_until, tasks, undisturbed, assert_same_results, tmp_path, kind, number):
    """What could not be written is told, and written later."""
    run = tmp_path / "run"
    flags = [*tasks["reid"], "--checkpoint_minutes=0"]
    ended = train_until(flags, run, kind=kind, number=number, does="no space")
    assert ended.status == 0, ended
    warnings = [line for line in ended.out.splitlines() if line.startswith("warning: ")]
    (warning,) = (line for line in warnings if "both training and test" not in line)  # which is of the data
    assert "No space left on device" in warning and "last good checkpoint" in warning
    assert_same_results(run, undisturbed("reid"))


@pytest.mark.parametrize(("kind", "number"), EVERYTHING.values(), ids=EVERYTHING)
def test_no_room_from_some_moment_on(train_until, tasks, undisturbed, assert_same_results, tmp_path, kind, number):
    """The training comes to its end and says what is not there; once there is room, the same command mends it."""
    run = tmp_path / "run"
    ended = train_until(tasks["fgvc"], run, kind=kind, number=number, does="no space from here")
    assert ended.status == 2, ended
    (line,) = ended.err.splitlines()
    assert_says(line, "dcal: error: ", "training is done", "cannot write", "same command", "last good checkpoint")
    assert sum(line.startswith("epoch ") for line in ended.out.splitlines()) == 3
    assert all(verify(path) is None for path in list_checkpoints(run / "checkpoints"))
    again = train_until(tasks["fgvc"], run)
    assert again.status == 0, again
    assert_same_results(run, undisturbed("fgvc"))


@pytest.mark.parametrize("image", [13, 25])  # of the second and third step
def test_killed_with_results_that_there_was_no_room_for(
    train_until, tasks, undisturbed, assert_same_results, tmp_path, image
):
    """Epoch 2 is the best: neither its model nor its row could be written, and then the run was killed."""
    run = tmp_path / "run"
    flags = [*tasks["fgvc"], "--checkpoint_minutes=0"]
    # Two models are written after the first epoch; the third event is of the second.
    no_models = {"kind": "write model, before", "number": 3, "does": "no space from here"}
    ended = train_until(flags, run, **no_models, end=("image of epoch 3", image))
    assert ended.status == -signal.SIGKILL
    assert list_checkpoints(run / "checkpoints")[-1].name.startswith("epoch_0002")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    assert train_until(flags, run).status == 0
    assert_same_results(run, undisturbed("fgvc"))


# --- a real one ---


@pytest.fixture
def small_disk(tmp_path):
    """A file system in memory of a given size, which can be changed: `small_disk(size="2m")`."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options: str) -> Path:
        again = ["remount"] if os.path.ismount(disk) else []
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*again, *options]), "tmpfs", disk]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            pytest.skip(f"cannot mount: {error}")
        if done.returncode:
            pytest.skip(f"cannot mount: {done.stderr.strip()}")
        return disk

    yield mount
    if os.path.ismount(disk):
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    "kilobytes", [1500, *(pytest.param(size, marks=pytest.mark.slow) for size in (2500, 4000, 6000))]
)
def test_a_disk_that_is_full(train_until, tasks, undisturbed, assert_same_results, small_disk, tmp_path, kilobytes):
    """Room for the settings alone, for a checkpoint, for some of them."""
    run = small_disk(f"size={kilobytes}k") / "run"
    flags = [*tasks["fgvc"], "--checkpoint_minutes=0"]
    ended = train_until(flags, run)
    assert ended.status in (0, 2), ended
    assert "Traceback" not in ended.err + ended.out
    if ended.status:
        assert "No space left on device" in ended.err and "training is done" in ended.err
    assert "No space left on device" in ended.out or kilobytes == 6000
    assert all(verify(path) is None for path in list_checkpoints(run / "checkpoints"))
    small_disk("size=64m")
    again = train_until(flags, run)
    assert again.status == 0, again
    assert_same_results(run, undisturbed("fgvc"))


def test_a_folder_that_can_only_be_read(train_until, tasks, undisturbed, assert_same_results, small_disk):
    disk = small_disk("size=64m")
    run = disk / "run"
    assert train_until(tasks["fgvc"], run, kind="backward, after", number=9, does="SIGTERM").status == 75
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    Path(f"{run}.err").rename(f"{run}.before")
    small_disk("ro")
    # What the training says goes elsewhere: that disk cannot be written to.
    ended = train_until(tasks["fgvc"], run, said=str(disk.parent / "said"))
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert_says(line, "dcal: error: cannot write", f"'{run}'", "Read-only file system")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    small_disk("rw")
    assert train_until(tasks["fgvc"], run).status == 0
    assert_same_results(run, undisturbed("fgvc"))


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write anywhere")
@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_folder_that_may_not_be_written_to_any_more(
    train_until, tasks, undisturbed, assert_same_results, tmp_path, epoch
):
    run = tmp_path / "run"
    ended = train_until(tasks["fgvc"], run, kind="epoch, before", number=epoch, does="no permission")
    assert ended.status == 2, ended
    assert_says(ended.err, "dcal: error: ", "training is done", "cannot write checkpoint", "Permission denied")
    # A thread writes them: that of the epoch before may not have ended when the folder was closed.
    assert epoch - 2 <= len(list_checkpoints(run / "checkpoints")) <= epoch - 1
    assert all(verify(path) is None for path in list_checkpoints(run / "checkpoints"))
    for folder in (run, *run.rglob("*/")):
        folder.chmod(0o700)
    assert train_until(tasks["fgvc"], run).status == 0
    assert_same_results(run, undisturbed("fgvc"))


@pytest.mark.slow
def test_a_log_that_cannot_be_written(tasks, environment, undisturbed, assert_same_results, tmp_path):
    """What a training says goes to a full disk."""
    command = [sys.executable, Path(__file__).parents[2] / "train.py", *tasks["fgvc"]]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, f"--output_dir={tmp_path / 'run'}"],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert_same_results(tmp_path / "run", undisturbed("fgvc"))
