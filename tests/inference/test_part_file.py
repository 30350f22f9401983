"""The rows of a command that was interrupted: none is lost, none is there twice, none is of another command."""

import errno
import json
import os
from pathlib import Path

import pytest

from dual_cross_attention import InputError
from dual_cross_attention.inference import part_file
from dual_cross_attention.inference.part_file import PartFile

PATHS = ["a.jpg", "ü\udcff.jpg", 'c "d"\n.jpg', "e.jpg"]


def write(output, paths=PATHS, stop_after=None, settings=None, resume="auto"):
    """What a command does; returns the paths that it computes."""
    computed = []
    with PartFile(output, settings or {"model": "m"}, resume) as part:
        for path in part.remaining(paths):
            if len(computed) == stop_after:
                return computed
            part.append({"path": path})
            computed.append(path)
        rows = list(part.rows())
        part.finish(lambda temporary: temporary.write_text(json.dumps([row["path"] for row in rows])))
    return computed


def test_a_cut_at_any_byte_loses_and_repeats_no_row(tmp_path):
    output = tmp_path / "out.csv"
    write(output, stop_after=3)
    part = tmp_path / "out.csv.part.jsonl"
    whole = part.read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        part.write_bytes(whole[:length])
        rows = max(0, sum(end <= length for end in ends) - 1)
        assert write(output) == PATHS[rows:]
        assert json.loads(output.read_text()) == PATHS
        assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_other_rows_are_refused(tmp_path):
    output = tmp_path / "out.csv"
    write(output, stop_after=2)
    for arguments, said in (
        ({"settings": {"model": "other"}}, "model 'm' there, 'other' now"),
        ({"settings": {"model": "m", "top_k": 3}}, "top_k"),
        ({"paths": PATHS[:1]}, "no more image"),
        ({"paths": ["new.jpg", *PATHS]}, "new.jpg"),
    ):
        with pytest.raises(InputError) as error:
            write(output, **arguments)
        assert said in str(error.value) and "--resume never" in str(error.value)
    assert write(output) == PATHS[2:]
    write(output, stop_after=2)
    assert write(output, resume="never", settings={"model": "other"}) == PATHS


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}", b'{"path": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_line_is_refused(tmp_path, damage):
    output, part = tmp_path / "out.csv", tmp_path / "out.csv.part.jsonl"
    write(output, stop_after=2)
    lines = part.read_bytes().splitlines()
    for number in (0, 1):
        part.write_bytes(b"\n".join([*lines[:number], damage, *lines[number + 1 :], b""]))
        with pytest.raises(InputError, match="part"):
            write(output)


def test_rows_stay_where_the_output_cannot_be_written(tmp_path):
    (tmp_path / "out.csv.tmp").mkdir()
    with pytest.raises(InputError, match="rows so far"):
        write(tmp_path / "out.csv")
    (tmp_path / "out.csv.tmp").rmdir()
    assert write(tmp_path / "out.csv") == []
    assert json.loads((tmp_path / "out.csv").read_text()) == PATHS


def test_one_process_writes_an_output(tmp_path, monkeypatch):
    monkeypatch.setattr(part_file, "WAITED_FOR", 0)
    with PartFile(tmp_path / "out.csv", {}), pytest.raises(InputError, match="another process"):
        write(tmp_path / "out.csv", settings={})


class FullDisk:
    """A file that takes so many rows."""

    def __init__(self, file, rows):
        self.file, self.rows = file, rows

    def write(self, text):
        if self.rows == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.rows -= 1
        self.file.write(text)

    def close(self):
        self.file.close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_an_error_in_a_line_and_the_rows_stay(tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    open_path = Path.open

    def open_on_full_disk(path, mode="r", **options):
        file = open_path(path, mode, **options)
        return FullDisk(file, rows=3) if mode == "a" else file  # the header, and two rows

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"No space left.*out\.csv\.part\.jsonl"):
        patch.setattr(Path, "open", open_on_full_disk)
        with PartFile(output, {}) as part:
            for path in PATHS:
                part.append({"path": path})
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv.part.jsonl"]  # no lock
    with PartFile(output, {}) as part:
        assert list(part.remaining(PATHS)) == PATHS[2:]


def test_without_a_row_nothing_stays(tmp_path):
    with pytest.raises(ValueError), PartFile(tmp_path / "out.csv", {"model": "m"}):
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_file_is_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(part_file, "WAITED_FOR", 1000.0)
    with pytest.raises(InputError, match="cannot write"), PartFile(tmp_path / "missing" / "out.csv", {}):
        pass
