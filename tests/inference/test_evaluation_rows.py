"""Which errors of an evaluation are those of its file of rows."""

import errno
import os

import pytest

from dual_cross_attention.errors import InputError
from dual_cross_attention.inference import row_files
from dual_cross_attention.inference.evaluation_rows import columns
from dual_cross_attention.inference.row_files import write_rows

ROW = dict.fromkeys(columns([""])) | {"path": "a.jpg", "label": "ant"}


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_an_error_of_the_evaluation_is_its_own(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    with pytest.raises(ConnectionResetError), write_rows(path, columns([""])) as write:
        write(ROW)
        raise ConnectionResetError(errno.ECONNRESET, "the image server is gone")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["begin", "write", "close", "rename"])
def test_an_error_of_the_file_names_it(tmp_path, monkeypatch, moment):
    path = tmp_path / "rows.jsonl"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if moment == "rename":
        monkeypatch.setattr(os, "replace", full)
    elif moment == "write":
        monkeypatch.setattr(row_files, "as_line", full)
    there = tmp_path / "missing" / path.name if moment == "begin" else path
    with pytest.raises(InputError) as caught, write_rows(there, columns([""])) as write:
        if moment == "close":
            monkeypatch.setattr(os, "fsync", full)
        write(ROW)
    assert "--output" in f"{caught.value}" and path.name in f"{caught.value}"
    assert not list(tmp_path.iterdir())
