"""A process that is killed while it adds leaves the old or the new state; processes that add at once wait."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dual_cross_attention.gallery import GalleryIndex, vectors

from .conftest import add, settings, vector

DIMENSION, OLD, NEW = 64, 300, 900
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An HNSW index of `OLD` images."""
    monkeypatch.setattr(vectors, "FLAT_TAIL", 100)
    index = GalleryIndex.create(tmp_path / "index", settings(dimension=DIMENSION, kind="hnsw"))
    add(index, {f"/{number}": (f"{number // 20}", f"{number}") for number in range(OLD)})
    index.close()
    return index


def start(index, first, last) -> subprocess.Popen:
    """Starts a process that adds; it has opened the index."""
    command = [sys.executable, "-m", "tests.gallery.adding_process", index.folder, f"{first}", f"{last}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def check(folder) -> int:
    """The index is consistent; how many images it has."""
    index = GalleryIndex.open(folder)
    rows = index.images()
    assert all(row.path == f"/{row.digest.decode()}" for row in rows)
    stored = np.stack([vector(row.digest.decode(), DIMENSION) for row in rows])
    queries = [3, OLD - 1, OLD + 7, NEW - 1]
    for number, found in zip(
        queries, index.search(np.stack([vector(f"{n}", DIMENSION) for n in queries])), strict=True
    ):
        exact = np.linalg.norm(stored.astype(np.float64) - vector(f"{number}", DIMENSION), axis=1)
        nearest = rows[exact.argmin()]
        assert (found[0].path, found[0].identity) == (nearest.path, nearest.identity)
        assert found[0].distance == pytest.approx(exact.min(), abs=1e-6)
    index.close()
    return len(rows)


def kill_at_random_moments(index, number: int, seed: int) -> list[int]:
    """Numbers of images after each of so many kills, at moments over the whole time that adding takes."""
    process, began = start(index, OLD, NEW), time.monotonic()
    assert process.wait() == 0 and check(index.folder) == NEW + 1
    seconds = time.monotonic() - began
    found, chosen = [], random.Random(seed)
    for _ in range(number):
        index.remove([f"/{n}" for n in range(OLD, NEW + 1)])
        index.rebuild()
        index.close()
        process = start(index, OLD, NEW)
        time.sleep(chosen.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found.append(check(index.folder))
        assert found[-1] in (OLD, NEW + 1)
        again = start(index, OLD, NEW)
        assert again.wait() == 0 and check(index.folder) == NEW + 1
    return found


def test_three_kills(index):
    kill_at_random_moments(index, 3, seed=0)


@pytest.mark.slow
def test_twenty_kills(index):
    found = kill_at_random_moments(index, 20, seed=1)
    assert OLD in found, f"all were too late: {found}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("moment", ["half of the vectors", "vectors without rows", "rows that are not added"])
def test_a_kill_at_each_step(index, moment):
    process = os.fork()
    if not process:
        try:
            die_at(index, moment)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    before = (index.folder / "vectors-0.f32").stat().st_size
    assert before > OLD * 4 * DIMENSION and check(index.folder) == OLD
    again = GalleryIndex.open(index.folder)
    with again.writing():
        known = len(again.missing([b"new 0", b"new 1"]))
    assert known == (0 if moment == "rows that are not added" else 2)
    add(again, {f"/new {n}": ("ann", f"new {n}") for n in range(2)})
    assert again.search(vector("new 1", DIMENSION)[None], 1)[0][0].path == "/new 1"
    assert (index.folder / "vectors-0.f32").stat().st_size == (OLD + 2) * 4 * DIMENSION


def die_at(index, moment):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    features = np.stack([vector(f"new {n}", DIMENSION) for n in range(2)])
    with index.writing():
        if moment == "half of the vectors":
            with (index.folder / "vectors-0.f32").open("ab") as file:
                file.write(features.tobytes()[: 6 * DIMENSION])
            die()
        if moment == "vectors without rows":
            index._store.stage = die
        index.stage([b"new 0", b"new 1"], features)
        die()


def test_two_processes_that_add_at_once(index):
    one, other = start(index, OLD, 600), start(index, 500, NEW)  # some are added by both
    assert (one.wait(), other.wait()) == (0, 0)
    assert check(index.folder) == NEW + 1
    assert index.info()["unused"] == 0
