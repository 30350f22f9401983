"""`dcal shard` with several archives: interrupted, killed, on a full disk."""

import errno
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dual_cross_attention.data import load_fgvc
from dual_cross_attention.data.shards import writing
from tests.commands.sharded import ROOT, TASKS, archives_of, shard
from tests.helpers import assert_refused


@pytest.fixture
def noisy(tmp_path) -> Path:
    """Images of about 120 kB each: several archives of a million bytes."""
    for split, count in (("train", 24), ("val", 4)):
        for number in range(count):
            path = tmp_path / "noisy" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.frombytes("RGB", (200, 200), os.urandom(120_000)).save(path)
    return tmp_path / "noisy"


def flags_in_this_process(source: Path, target: Path) -> list[str]:
    """Of a command with small archives that reads in this process, so that a test can end it in the middle."""
    folders = [f"--data_root={source}", f"--output_dir={target}"]
    return ["shard", "--dataset=folder", *folders, "--shard_mb=1", "--num_workers=0"]


def test_several_archives(dcal, noisy, tmp_path):
    lines = shard(dcal, "fgvc", noisy, tmp_path / "my shards", "--shard_mb", 1)
    assert "24 of train in 3 archives, 4 of val in 1 archive;" in lines[-4]
    assert lines[-1].endswith(f"--data_root '{tmp_path}/my shards/train-{{000000..000002}}.tar'")
    sizes = [path.stat().st_size for path in (tmp_path / "my shards").glob("train-*.tar")]
    assert max(sizes) <= 10**6
    root = f"{tmp_path}/my shards/train-{{000000..000002}}.tar"
    assert len(load_fgvc("shards", root).train) == 24
    assert all(os.stat(path).st_size for path in (tmp_path / "my shards").glob("*.index"))


def test_an_interrupted_command_can_be_run_again(dcal, noisy, tmp_path, monkeypatch):
    shard(dcal, "fgvc", noisy, tmp_path / "whole", "--shard_mb", 1)
    target = tmp_path / "cut"
    encoded, calls = writing.encoded, []

    def stop(image):
        calls.append(image)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return encoded(image)

    flags = flags_in_this_process(noisy, target)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "encoded", stop)
        assert dcal(*flags).status == 130
    assert [path.name for path in target.glob("*.tar*")] == ["train-000000.tar"]
    assert archives_of(target)["train-000000.tar"] == archives_of(tmp_path / "whole")["train-000000.tar"]
    # What is there looks like no dataset.
    assert_refused(
        dcal("train", *TASKS["fgvc"], "--dataset=shards", f"--data_root={target}"), "unfinished", "run it again"
    )
    assert_refused(
        dcal("train", *TASKS["fgvc"], "--dataset=shards", f"--data_root={target}/train-000000.tar"), "unfinished"
    )
    (target / "train-000001.tar.tmp").write_bytes(b"of one that was killed")
    (target / "train-000009.tar").write_bytes(b"of more images than there are now")
    assert dcal(*flags).status == 0
    assert archives_of(target) == archives_of(tmp_path / "whole")
    assert not list(target.glob("*.tmp"))


def test_a_killed_command(noisy, tmp_path, dcal):
    """By SIGKILL, in the middle: what has its name is whole."""
    target = tmp_path / "cut"
    code = """
import os, signal, sys
from dual_cross_attention.cli import main
from dual_cross_attention.data.shards import writing
encoded, calls = writing.encoded, []
def stop(image):
    calls.append(image)
    if len(calls) == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return encoded(image)
writing.encoded = stop
main(sys.argv[1:])
"""
    flags = flags_in_this_process(noisy, target)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code, *flags], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert (target / "train-000001.tar.tmp").exists()
    assert dcal(*flags).status == 0
    shard(dcal, "fgvc", noisy, tmp_path / "whole", "--shard_mb", 1)
    assert archives_of(target) == archives_of(tmp_path / "whole") and not list(target.glob("*.tmp"))


def test_a_full_disk(dcal, noisy, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    flags = [
        "shard",
        "--dataset=folder",
        f"--data_root={noisy}",
        f"--output_dir={tmp_path / 'full'}",
        "--num_workers=0",
    ]
    assert_refused(dcal(*flags), tmp_path / "full", "No space left on device", "the same command")
    assert not list((tmp_path / "full").glob("*.tar*"))


def test_a_decoder_that_crashes(dcal, images, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "encoded", die)  # inherited by the workers, which are forked
    flags = ["shard", "--dataset=folder", f"--data_root={images}", f"--output_dir={tmp_path}", "--num_workers=1"]
    assert_refused(dcal(*flags), "has died", "dcal check-data")


def die(_):
    os._exit(1)
