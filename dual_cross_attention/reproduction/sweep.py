"""A resumable sweep of trainings: each in a folder of its own, several processes or machines on one output folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.resumed import setting_differences
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.errors import RUN_IN_USE, InterruptedRun
from dual_cross_attention.runs.run_folder import RunFolder

PACKAGE_ROOT = Path(__file__).parents[2]
DCAL = [sys.executable, "-m", "dual_cross_attention"]
STOPPED = {75, 130, -signal.SIGINT, -signal.SIGTERM}
"""Exit statuses of a command that was asked to stop."""


@dataclass(frozen=True)
class Training:
    """One run of a sweep.

    Args:
        path: its run folder.
        arguments: of `dcal train`, beside --output_dir.
        config: the settings that these arguments are.
    """

    path: Path
    arguments: list[str]
    config: TrainingConfig | None = None

    @property
    def scores(self) -> Path:
        """Scores of the last model on each test image, see `scores.py`; written when the training has ended."""
        return self.path / "test_scores.npz"

    @property
    def failure(self) -> Path:
        """Why the last attempt failed."""
        return self.path.with_name(f"{self.path.name}.failed.json")

    @property
    def lock(self) -> Path:
        """Locked by the process that trains it."""
        return self.path.with_name(f".{self.path.name}.lock")

    def is_done(self) -> bool:
        """Whether it was trained to the end and scored."""
        return self.scores.is_file()

    def other_settings(self) -> str | None:
        """How the settings of the run in the folder differ from `config`, in words; None: they do not."""
        if self.config is None or not RunFolder(self.path).config.is_file():
            return None
        differences = setting_differences(self.config, RunFolder(self.path).read_config())
        return ", ".join(text for _, text in differences) or None

    def read_failure(self) -> str | None:
        """The reason of the last attempt, in a line; None: it did not fail."""
        try:
            return f"{json.loads(self.failure.read_text())['reason']}"
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return "failed, for a reason that cannot be read"


@dataclass
class SweepResult:
    """What `run_sweep` did.

    Args:
        trained: trainings that this process finished.
        failed: those that failed.
        elsewhere: those that other processes are training now.
    """

    trained: int = 0
    failed: int = 0
    elsewhere: int = 0


def run_sweep(
    trainings: Sequence[Training],
    on_message: Callable[[str], None],
    train: Callable[[Training], str | None] | None = None,
) -> SweepResult:
    """Trains what is not done, one after the other, and scores it.

    Each training is locked while it runs, so processes that share the folder take different ones. If a process is
    killed, the next one resumes its training. A training that fails is recorded, and the sweep continues; the next call
    tries it again.

    Args:
        trainings: in their order.
        on_message: called with a line before each training and after a failure.
        train: trains and scores one, and returns why that failed, or None; None: `train_and_score`.

    Raises:
        InterruptedRun: a signal stopped a training; the same call resumes.
    """
    result, tried = SweepResult(), set()
    while True:
        # Another process may have ended one since, or have been killed: what it had is open again.
        todo = [each for each in trainings if each.path not in tried and not each.is_done()]
        if not todo:
            return result
        for each in todo:
            with _locked(each) as is_ours:
                if not is_ours:
                    continue
                tried.add(each.path)
                if each.is_done():
                    continue
                number = sum(training.is_done() for training in trainings) + 1
                on_message(f"training {number} of {len(trainings)}: {each.path.name}")
                try:
                    reason = (train or train_and_score)(each)
                except TrainedElsewhere:
                    result.elsewhere += 1
                    break
                result.trained += reason is None
                result.failed += reason is not None
                if reason:
                    on_message(f"failed: {each.path.name}: {reason}")
            break
        else:
            result.elsewhere += len(todo)
            return result


class TrainedElsewhere(Exception):
    """Another process trains into the run folder, such as one whose sweep was killed."""


def train_and_score(training: Training) -> str | None:
    """Trains by `dcal train`, and scores the last model; returns why that failed, which is recorded, or None.

    Raises:
        InterruptedRun: a signal stopped it.
        TrainedElsewhere: another process trains into its folder.
    """
    training.path.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    status, last_line = _call(["train", *training.arguments, "--output_dir", f"{training.path}"])
    if status == RUN_IN_USE:
        raise TrainedElsewhere(training.path.name)
    if not status:
        scored = ["dual_cross_attention.reproduction.scores", f"{RunFolder(training.path).last}", f"{training.scores}"]
        root = training.config and training.config.data_root
        status, last_line = _call([*scored, *([root] if root else [])], [sys.executable, "-m"])
    if status in STOPPED:
        raise InterruptedRun(f"stopped in {training.path.name}: the same command resumes")
    if not status:
        training.failure.unlink(missing_ok=True)
        return None
    reason = last_line.removeprefix("dcal: error: ") or f"exit status {status}"
    if status < 0:
        reason = f"killed by signal {-status}, by the system if memory ran out"
    content = {
        "format_version": FORMAT_VERSION,
        "reason": reason,
        "exit_status": status,
        "seconds": round(time.time() - started),
        "arguments": training.arguments,
    }
    with atomic_write(training.failure) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    return reason


def _call(arguments: Sequence[str], program: Sequence[str] | None = None) -> tuple[int, str]:
    """Runs a command with this process's streams; its exit status, and the last line of its standard error.

    A SIGTERM of this process is passed on, so that the command saves its work; Ctrl-C reaches both anyway. If a signal
    came, the status is one of `STOPPED`, also where the command was at its end.
    """
    last = ""
    paths = f"{PACKAGE_ROOT}", *filter(None, [os.environ.get("PYTHONPATH")])  # also where it is not installed
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        [*(program or DCAL), *arguments], stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    )
    with _passing_on(process) as received:
        for line in process.stderr:
            sys.stderr.write(line)
            last = line.strip() or last
        status = process.wait()
    return -received[0] if received and status not in STOPPED else status, last


@contextmanager
def _passing_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """Within this context, signals are handed on; yields the list of those that come."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGTERM:
            process.terminate()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _locked(training: Training) -> Iterator[bool]:
    """Whether this process has the training's lock, for the time of the context."""
    training.lock.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(training.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
