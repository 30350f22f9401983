"""One training at a time in a run's folder, and no longer than its process lives."""

import os
import signal
import time

import pytest

from dual_cross_attention.errors import RunInUseError
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.run_lock import RunLock


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "a" / "run")


def test_one_training_at_a_time(folder):
    first = RunLock(folder)
    first.acquire()
    with pytest.raises(RunInUseError, match=rf"'{folder.path}' is in use: process {os.getpid()} "):
        RunLock(folder).acquire()
    first.release()
    assert not folder.path.exists()  # nothing stays of a run that never began
    other = RunLock(RunFolder(folder.path))
    other.acquire()
    other.release()


def test_a_lock_ends_with_its_process(folder):
    """Even with a process that it forked, and that lives on."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        RunLock(folder).acquire()
        if not (living := os.fork()):
            time.sleep(20)
            os._exit(0)
        os.write(writing, f"{living}".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    living = int(os.read(reading, 20))
    try:
        os.kill(living, 0)  # it is there
        lock = RunLock(folder)
        lock.acquire()
        lock.release()
    finally:
        os.kill(living, signal.SIGKILL)
        os.close(reading)
        os.close(writing)
