"""Sweeps: no training is repeated or lost if a process is killed, and failures are recorded."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dual_cross_attention.errors import InterruptedRun
from dual_cross_attention.reproduction import sweep
from dual_cross_attention.reproduction.sweep import Training, run_sweep, train_and_score

WORKER = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path
    from dual_cross_attention.reproduction.sweep import Training, run_sweep

    folder = Path(sys.argv[1])

    def train(training):
        training.path.mkdir(exist_ok=True)
        with open(folder / "log.txt", "a") as log:
            log.write(f"begin {training.path.name} {os.getpid()}\\n")
        time.sleep(0.05)
        with open(folder / "log.txt", "a") as log:
            log.write(f"end {training.path.name} {os.getpid()}\\n")
        training.scores.touch()

    run_sweep([Training(folder / f"run{n}", []) for n in range(12)], lambda line: None, train)
""")


def trainings(folder: Path, count: int) -> list[Training]:
    return [Training(folder / f"run{number}", ["--seed", f"{number}"]) for number in range(count)]


def done(training: Training) -> None:
    training.path.mkdir(exist_ok=True)
    training.scores.touch()


def test_each_is_trained_once_in_order(tmp_path):
    seen, lines = [], []

    def train(training):
        seen.append(training.path.name)
        done(training)

    done(trainings(tmp_path, 5)[2])
    result = run_sweep(trainings(tmp_path, 5), lines.append, train)
    assert seen == ["run0", "run1", "run3", "run4"] and (result.trained, result.failed) == (4, 0)
    assert lines[0] == "training 2 of 5: run0"
    assert run_sweep(trainings(tmp_path, 5), lines.append, train).trained == 0 and len(seen) == 4


def test_a_failure_does_not_stop_the_others_and_is_tried_again_by_the_next_call(tmp_path):
    seen = []

    def train(training):
        seen.append(training.path.name)
        if training.path.name == "run1" and len(seen) < 4:
            return "diverged in epoch 2"
        done(training)

    lines = []
    result = run_sweep(trainings(tmp_path, 3), lines.append, train)
    assert seen == ["run0", "run1", "run2"] and (result.trained, result.failed) == (2, 1)
    assert any("run1" in line and "diverged in epoch 2" in line for line in lines)
    assert run_sweep(trainings(tmp_path, 3), lines.append, train).trained == 1 and seen[3:] == ["run1"]


def test_a_training_of_another_process_is_left_to_it(tmp_path):
    """A thread would share the lock of this process: the lock is per process."""
    inside, seen = [], []

    def train(training):
        if not inside:
            inside.append(training)
            other = run_sweep(trainings(tmp_path, 2), lambda line: None, lambda each: seen.append(each) or done(each))
            assert [each.path.name for each in seen] == ["run1"] and other.elsewhere == 1
        done(training)

    result = run_sweep(trainings(tmp_path, 2), lambda line: None, train)
    assert (result.trained, result.elsewhere) == (1, 0)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_that_are_killed_at_random_lose_and_repeat_no_training(tmp_path, seed):
    random.seed(seed)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for kill in (True, True, False):
        workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], env=environment) for _ in range(2)]
        if kill:
            deadline = time.time() + 60
            while not (tmp_path / "log.txt").exists() and time.time() < deadline:
                time.sleep(0.01)
            time.sleep(0.2 * random.random())
            for worker in workers:
                worker.send_signal(signal.SIGKILL)
        for worker in workers:
            worker.wait(timeout=120)
    assert all(training.is_done() for training in trainings(tmp_path, 12))
    events = [line.split() for line in (tmp_path / "log.txt").read_text().splitlines()]
    ends = [name for what, name, _ in events if what == "end"]
    # One that was killed between its log line and its scores is trained again; no other is.
    assert len(set(ends)) == 12 and len(ends) <= 12 + 4
    open_by = {}
    for what, name, process in events:  # no two processes train the same at a time
        if what == "begin":
            open_by[name] = process
        else:
            assert open_by[name] == process


def test_the_reason_of_a_failure_is_recorded(tmp_path):
    training = Training(tmp_path / "run", ["--task", "fgvc", "--dataset", "toy", "--epochs", "none"])
    reason = train_and_score(training)
    assert "--epochs" in reason and training.read_failure() == reason
    assert not training.is_done()
    training.failure.write_text("{")
    assert "cannot be read" in training.read_failure()


@pytest.mark.parametrize(
    ("status", "stops"), [(75, True), (130, True), (-signal.SIGTERM, True), (-signal.SIGKILL, False), (3, False)]
)
def test_how_a_training_ended(tmp_path, monkeypatch, status, stops):
    """By the exit status of its process, which a script stands for; a negative one is a signal."""
    code = f"os.kill(os.getpid(), {-status})" if status < 0 else f"sys.exit({status})"
    monkeypatch.setattr(sweep, "DCAL", [sys.executable, "-c", f"import os, sys; {code}"])
    (training,) = trainings(tmp_path, 1)
    if stops:
        with pytest.raises(InterruptedRun):
            train_and_score(training)
        assert training.read_failure() is None
    else:
        assert train_and_score(training) == training.read_failure()
        assert ("signal 9" in training.read_failure()) == (status == -signal.SIGKILL)


def test_a_signal_stops_the_sweep_also_where_the_training_was_at_its_end(tmp_path, monkeypatch):
    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.kill(os.getppid(), 15); time.sleep(0.5)"
    monkeypatch.setattr(sweep, "DCAL", [sys.executable, "-c", code])
    with pytest.raises(InterruptedRun):
        train_and_score(trainings(tmp_path, 1)[0])


def test_a_folder_that_an_orphan_trains_into_is_no_failure(tmp_path, monkeypatch):
    code = "import sys; sys.exit(4)"
    monkeypatch.setattr(sweep, "DCAL", [sys.executable, "-c", code])
    result = run_sweep(trainings(tmp_path, 2), lambda line: None)
    assert (result.trained, result.failed, result.elsewhere) == (0, 0, 2)
    assert all(training.read_failure() is None for training in trainings(tmp_path, 2))


def test_a_signal_stops_the_sweep(tmp_path):
    def train(training):
        raise InterruptedRun("stopped")

    with pytest.raises(InterruptedRun):
        run_sweep(trainings(tmp_path, 2), lambda line: None, train)
    with pytest.raises(InterruptedRun):  # the lock is free again
        run_sweep(trainings(tmp_path, 2), lambda line: None, train)
