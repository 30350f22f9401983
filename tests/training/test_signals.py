"""Ctrl-C and SIGTERM at any moment: a training saves, leaves with 75, and continues as if nothing had happened."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dual_cross_attention.errors import InterruptedRun
from dual_cross_attention.training import run as training
from dual_cross_attention.training.checkpointing.checkpoints import list_checkpoints, verify
from dual_cross_attention.training.signals import LEFT_EARLY, REPEAT_SECONDS, SignalHandler, exit_on_signal
from tests.helpers import assert_says

ROOT = Path(__file__).parents[2]
MOMENTS = {
    "the first micro-batch of a step": ("backward, before", 7, "SIGTERM"),  # two to a step: nothing of it may stay
    "the opening of an image": ("image, before", 50, "SIGINT"),
    "reading in the evaluation": ("image of epoch 0", 20, "SIGTERM"),
    "an evaluated image": ("image, after", 30, "SIGTERM"),
    "writing a checkpoint": ("checkpoint, before", 1, "SIGINT"),
    "renaming one": ("rename, before", 3, "SIGTERM"),
    "the first step": ("backward, before", 1, "SIGTERM"),  # there is nothing to save
}


@pytest.mark.parametrize(("kind", "number", "does"), MOMENTS.values(), ids=MOMENTS)
def test_a_signal_saves_and_leaves(train_until, tasks, undisturbed, assert_same_results, tmp_path, kind, number, does):
    """Re-identification: its running statistics change with every forward pass, also of a step that is given up."""
    run = tmp_path / "run"
    ended = train_until(tasks["reid"], run, kind=kind, number=number, does=does)
    assert ended.status == 75, ended
    (line,) = ended.err.splitlines()
    assert line.startswith(f"dcal: error: {does}: left at epoch ") and "same command" in line
    saved = list_checkpoints(run / "checkpoints")
    assert all(verify(path) is None for path in saved)
    assert (f"the last checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet") in line
    assert bool(saved) == (number != 1 or kind.startswith("checkpoint"))
    goes_on = train_until(tasks["reid"], run)
    assert goes_on.status == 0, goes_on.err
    assert ("resumed after epoch" in goes_on.out) == bool(saved)
    assert_same_results(run, undisturbed("reid"))


STARTS = {
    "locking the folder": ("write text", "SIGTERM"),
    "looking for a checkpoint": ("look, before", "SIGINT"),
    "having found one": ("look, after", "SIGTERM"),
    "reading labels": ("labels, before", "SIGTERM"),
    "having read them": ("labels, after", "SIGINT"),
    "building the model": ("build, before", "SIGTERM"),
}
MENDING = {
    "mending results": ("mended, before", "SIGTERM"),
    "having written one": ("flush, after", "SIGINT"),
}


@pytest.mark.parametrize(
    ("kind", "does", "goes_on"),
    [
        *(pytest.param(*start, False, id=f"{name}, from nothing") for name, start in STARTS.items()),
        *(pytest.param(*start, True, id=f"{name}, from a checkpoint") for name, start in (STARTS | MENDING).items()),
    ],
)
def test_a_signal_while_it_starts(train_until, tasks, undisturbed, assert_same_results, tmp_path, kind, does, goes_on):
    """It leaves at once, with 75; what never began leaves nothing, and what had begun continues."""
    run, flags = tmp_path / "run", tasks["fgvc"]
    if goes_on:
        killed = train_until(flags, run, kind="result, before", number=3, does="kill")  # there is something to mend
        assert killed.status == -signal.SIGKILL
    ended = train_until(flags, run, kind=kind, does=does)
    assert ended.status == 75, ended
    (line,) = ended.err.splitlines()
    assert_says(line, f"dcal: error: {does}: ", "before the first step", "same command", "checkpoint")
    assert run.exists() == goes_on and not list(run.rglob("*.tmp"))
    again = train_until(flags, run)
    assert again.status == 0, again
    assert ("resumed after epoch 2" in again.out) == goes_on
    assert_same_results(run, undisturbed("fgvc"))


@pytest.mark.parametrize("kind", ["rename, before", "rename, after"])
def test_a_signal_between_start_and_training(train_until, tasks, undisturbed, assert_same_results, tmp_path, kind):
    """While the settings are written: they are written to the end, and the first step is not."""
    ended = train_until(tasks["fgvc"], tmp_path / "run", kind=kind, does="SIGTERM")
    assert ended.status == 75 and "SIGTERM: left at epoch 1 of 3, step 0" in ended.err, ended
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert train_until(tasks["fgvc"], tmp_path / "run").status == 0
    assert_same_results(tmp_path / "run", undisturbed("fgvc"))


def test_a_second_ctrl_c_while_it_starts(train_until, tasks, tmp_path):
    """Where the first one has to wait."""
    twice = {"does": "SIGINT SIGINT", "pause": REPEAT_SECONDS + 0.2}
    ended = train_until(tasks["fgvc"], tmp_path / "run", kind="write text", **twice)
    assert (ended.status, ended.err) == (130, "dcal: left at once, nothing saved since the last checkpoint\n")
    assert train_until(tasks["fgvc"], tmp_path / "run").status == 0


def test_again_and_again(train_until, tasks, undisturbed, assert_same_results, tmp_path):
    """Each time later, so that every second start finds a checkpoint that a signal has left."""
    for number in (5, 3, 4, 4):
        ended = train_until(tasks["fgvc"], tmp_path / "run", kind="backward, after", number=number, does="SIGTERM")
        assert ended.status == 75, ended
    assert train_until(tasks["fgvc"], tmp_path / "run").status == 0
    assert_same_results(tmp_path / "run", undisturbed("fgvc"))


@pytest.mark.parametrize(("kind", "number"), [("backward, before", 9), ("write state or progress", 2000)])
def test_a_second_ctrl_c_leaves_at_once(train_until, tasks, undisturbed, assert_same_results, tmp_path, kind, number):
    """130, nothing saved any more, nothing damaged."""
    twice = {"does": "SIGINT SIGINT", "pause": REPEAT_SECONDS + 0.2}
    ended = train_until(tasks["fgvc"], tmp_path / "run", kind=kind, number=number, **twice)
    assert (ended.status, ended.err) == (130, "dcal: left at once, nothing saved since the last checkpoint\n")
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["epoch_0001"]
    assert train_until(tasks["fgvc"], tmp_path / "run").status == 0
    assert_same_results(tmp_path / "run", undisturbed("fgvc"))


def test_the_same_ctrl_c_twice_is_one(train_until, tasks, tmp_path):
    """Within a second: launchers pass on what the terminal has sent to all."""
    ended = train_until(
        tasks["fgvc"], tmp_path / "run", kind="backward, before", number=9, does="SIGINT SIGINT SIGTERM"
    )
    assert ended.status == 75
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 2


def test_a_signal_ends_a_run_that_waits_for_an_image(train_until, tasks, tmp_path):
    """Otherwise a hanging disk would block it until the worker times out, after ten minutes."""
    flags = [*tasks["fgvc"], "--num_workers=1"]
    ended = train_until(flags, tmp_path / "run", kind="image of epoch 2", number=20, does="SIGTERM and hang")
    assert ended.status == 75, ended
    assert (tmp_path / "run" / "checkpoints" / "epoch_0001").is_dir()


def test_a_signal_within_a_library_that_fails():
    """As in a collective whose other ranks have ended: Python handles the signal while the error propagates."""
    calls = map(ctypes.CDLL(None)["raise"], [signal.SIGTERM, object()])  # the second argument is none that C knows
    with SignalHandler() as asked, pytest.raises(InterruptedRun, match=r"^SIGTERM: .*before the first step"):
        training._starting(asked, lambda: list(calls))


# --- SignalHandler ---


def test_a_signal_while_libraries_are_loaded(tmp_path):
    """In a process of its own, which loads one that takes long; the status is that of any other moment."""
    (tmp_path / "slow.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM); import this")
    code = "from dual_cross_attention.training.signals import *\nwith exit_on_signal(): import slow"
    path = os.pathsep.join((str(ROOT), str(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == f"dcal: error: SIGTERM: {LEFT_EARLY}\n"


def test_handlers_are_put_back_once_libraries_are_loaded():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with exit_on_signal():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert before == {number: signal.getsignal(number) for number in before}


def test_a_signal_is_a_request():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    asked = SignalHandler()
    with asked:
        assert asked.requested is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # within a second
        assert asked.requested == "SIGTERM"
    assert before == {number: signal.getsignal(number) for number in before}


def test_they_are_caught_to_the_end_of_the_outermost():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    asked = SignalHandler()
    with asked:
        with asked:
            pass
        signal.raise_signal(signal.SIGTERM)
    assert asked.requested == "SIGTERM"
    assert before == {number: signal.getsignal(number) for number in before}


def test_a_signal_is_raised_where_nothing_can_be_half_done():
    asked = SignalHandler()
    with asked:
        with pytest.raises(InterruptedRun, match="SIGINT"), asked.raise_immediately():
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")
        with pytest.raises(InterruptedRun, match="SIGINT"), asked.raise_immediately():
            raise AssertionError("not reached either: it was asked for before")


def test_no_handler_takes_it_for_an_error():
    """Reading an image catches whatever a decoder may raise."""
    assert not issubclass(InterruptedRun, Exception)


def test_a_reading_process_leaves_it_to_the_one_that_trains():
    asked = SignalHandler()
    with asked:
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)  # not reached
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (status, asked.requested) == (128 + signal.SIGTERM, None)
