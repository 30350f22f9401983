"""Groups of byte-identical files."""

import os
from itertools import combinations
from pathlib import Path

from dual_cross_attention.data import duplicates
from dual_cross_attention.data.duplicates import FIRST_BYTES, identical_files


def test_groups_are_those_of_comparing_every_pair(tmp_path):
    long = b"x" * FIRST_BYTES
    contents = [b"one", b"two", b"one", b"", long + b"a", long + b"b", long + b"a", b"one", b"", b"unique"]
    paths = [tmp_path / f"{place}" for place in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    same = {pair for group in identical_files(paths) for pair in combinations(group, 2)}
    places = range(len(contents))
    assert same == {(a, b) for a, b in combinations(places, 2) if contents[a] == contents[b]}


def test_links_are_copies_and_missing_files_are_not(tmp_path):
    (tmp_path / "file").write_bytes(b"image")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "to nothing").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    names = ["to nothing", "file", "none", "link", "pipe"]
    assert identical_files([tmp_path / name for name in names]) == [[1, 3]]


def test_only_files_of_equal_size_are_opened(tmp_path, monkeypatch):
    for name, content in (("a", b"1"), ("b", b"22"), ("c", b"33"), ("d", b"444")):
        (tmp_path / name).write_bytes(content)
    opened = set()
    original = duplicates.open_regular
    monkeypatch.setattr(duplicates, "open_regular", lambda path: opened.add(Path(path).name) or original(path))
    assert identical_files([tmp_path / name for name in "abcd"]) == []
    assert opened == {"b", "c"}
