"""Rows are synced to disk: every few seconds, when a command is interrupted, and never row by row."""

import errno
import os

import pytest

from dual_cross_attention import InputError
from dual_cross_attention.inference import part_file
from dual_cross_attention.inference.part_file import PartFile


@pytest.fixture
def disk(monkeypatch):
    """What each sync of the rows finds in the file, under a clock that the test sets."""

    class Disk:
        def __init__(self):
            self.now, self.rows, self.folders, self.full = 0.0, [], 0, False

        def flush(self, path):
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if path.is_dir():
                self.folders += 1
            else:
                self.rows.append(path.read_text().count('"path"'))

    disk = Disk()
    monkeypatch.setattr(part_file, "flush", disk.flush)
    monkeypatch.setattr(part_file, "clock", lambda: disk.now)
    return disk


def append(part, number):
    part.append({"path": f"{number}.jpg"})


def test_rows_are_synced_every_few_seconds(tmp_path, disk):
    with PartFile(tmp_path / "out.csv", {}) as part:
        for number in range(100):
            append(part, number)
            disk.now += part_file.SYNC_EVERY / 8  # exact in binary
        assert disk.rows == [*range(9, 100, 8)] and disk.folders == 1
    assert disk.rows[-1] == 100  # interrupted: the last ones too


def test_a_finished_output_is_synced_in_place_of_its_rows(tmp_path, disk):
    with PartFile(tmp_path / "out.csv", {}) as part:
        append(part, 0)
        part.finish(lambda temporary: temporary.write_text("done"))
    assert disk.rows == []


def test_rows_are_synced_where_the_output_cannot_be_written(tmp_path, disk):
    (tmp_path / "out.csv.tmp").mkdir()
    with pytest.raises(InputError), PartFile(tmp_path / "out.csv", {}) as part:
        append(part, 0)
        part.finish(lambda temporary: temporary.write_text("done"))
    assert disk.rows == [1]


def test_rows_that_were_there_are_not_synced_again(tmp_path, disk):
    for number in range(2):
        with PartFile(tmp_path / "out.csv", {}) as part:
            append(part, number)
    with PartFile(tmp_path / "out.csv", {}) as part:
        assert part.done == 2
    assert disk.rows == [1, 2]


def test_a_sync_that_fails_is_an_error_in_a_line(tmp_path, disk):
    with pytest.raises(InputError, match="No space left"), PartFile(tmp_path / "out.csv", {}) as part:
        append(part, 0)
        disk.now, disk.full = part_file.SYNC_EVERY, True
        append(part, 1)


def test_a_sync_reaches_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def record(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}") if os.path.isdir("/proc/self/fd") else "")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with PartFile(tmp_path / "out.csv", {}) as part:
        append(part, 0)
    assert len(synced) == 2
    if synced[0]:
        assert synced == [f"{tmp_path / 'out.csv.part.jsonl'}", f"{tmp_path}"]
