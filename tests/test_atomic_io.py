"""Files that are the old or the new, whatever happens while they are written."""

import os
from pathlib import Path

import pytest

from dual_cross_attention.atomic_io import atomic_write, make_folder


@pytest.fixture
def done(monkeypatch):
    """What is done to the disk, in its order, and the names of what it is done to."""
    done = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor):
        done.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def rename(before, after):
        done.append(("rename", Path(after).name))
        replace(before, after)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    return done


def test_content_is_flushed_before_the_name_and_the_name_after(tmp_path, done):
    path = tmp_path / "folder" / "a.txt"
    make_folder(path.parent)
    assert done == [("flush", tmp_path.name)]
    done.clear()
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == path.parent
    assert done == [("flush", "a.txt.tmp"), ("rename", "a.txt"), ("flush", "folder")]
    assert path.read_text() == "new" and os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("at", ["writing", "flush", "rename"])
def test_what_fails_leaves_the_old_and_no_part_of_the_new(tmp_path, monkeypatch, at, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_):
        raise error

    name = {"flush": "fsync", "rename": "replace"}.get(at)
    if name:
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(type(error)), atomic_write(path) as temporary:
        temporary.write_text("half")
        if at == "writing":
            fail()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
