"""Which images the words of a command line name."""

import io
import os
import sys
from pathlib import Path

import pytest

from dual_cross_attention import InputError
from dual_cross_attention.inference.image_paths import find_images


def found(*words: object, stdin: bytes = b"") -> list[str]:
    """The paths, whose number must be the total, where there is one."""
    images = find_images([str(word) for word in words], io.BytesIO(stdin))
    paths = list(images.paths)
    assert images.total in (None, len(paths)) and (images.total is None) == ("-" in words)
    return paths


@pytest.fixture
def photos(tmp_path) -> Path:
    for name in ("b.jpg", "a.PNG", "deep/er/c.jpeg", "deep/note.txt", ".hidden/d.jpg", "Zoë/ü [1].jpg", "x y/e f.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_folders_are_recursive(photos):
    names = ["a.PNG", "b.jpg", "Zoë/ü [1].jpg", "deep/er/c.jpeg", "x y/e f.jpg"]
    assert found(photos) == [str(photos / name) for name in names]
    assert found(photos / "x y", photos / "b.jpg") == [str(photos / "x y" / "e f.jpg"), str(photos / "b.jpg")]


def test_patterns(photos):
    assert found(photos / "*.jpg") == [str(photos / "b.jpg")]
    assert found(f"{photos}/**/*.jp*g") == sorted(
        str(photos / name) for name in ("b.jpg", "Zoë/ü [1].jpg", "deep/er/c.jpeg", "x y/e f.jpg")
    )
    assert found(photos / "[xZ]*") == [str(photos / "Zoë/ü [1].jpg"), str(photos / "x y/e f.jpg")]  # folders
    assert found(photos / "Zoë/ü [1].jpg") == [str(photos / "Zoë/ü [1].jpg")]  # a file, no pattern


def test_standard_input(photos):
    names = ["b.jpg", "Zoë/ü [1].jpg", "C:\\photos\\a b.jpg", "missing.jpg"]
    for line_end in ("\n", "\r\n"):
        assert found("-", stdin=line_end.join([*names, "", ""]).encode()) == names
    assert found("-", stdin=b"\xef\xbb\xbfa.jpg") == ["a.jpg"]
    assert found(photos / "b.jpg", "-") == [str(photos / "b.jpg")]
    if sys.platform != "win32":
        assert [os.fsencode(path) for path in found("-", stdin=b"\xff.jpg\n")] == [b"\xff.jpg"]


def test_standard_input_is_read_as_it_comes():
    class Endless(io.RawIOBase):
        lines = 0

        def __iter__(self):
            while True:
                self.lines += 1
                yield b"a.jpg\n"

    stdin = Endless()
    paths = iter(find_images(["-"], stdin).paths)
    assert [next(paths) for _ in range(3)] == ["a.jpg"] * 3 and stdin.lines == 3


def test_no_images(photos):
    (photos / "empty").mkdir()
    (photos / "other").mkdir()
    (photos / "other" / "a.heic").touch()
    for words, said in (
        ([], "expected images"),
        ([photos / "empty"], "it is empty"),
        ([photos / "deep" / "*.png"], "pattern"),
        ([photos / "other"], ".heic"),
        ([photos / "missing.jpg"], "no file or folder"),
        (["-"], "standard input"),
    ):
        with pytest.raises(InputError) as error:
            found(*words)
        assert said in str(error.value)


def test_left_out_files_are_warned_about(photos):
    (photos / "d.heic").touch()
    (warning,) = find_images([str(photos)], io.BytesIO()).warnings
    assert ".heic" in warning


def test_windows_paths(photos, monkeypatch):
    """On other systems, a backslash is a character of a name."""
    if sys.platform == "win32":
        assert found(f"{photos}\\*.jpg") == [f"{photos}\\b.jpg"]
    else:
        (photos / "C:\\a\\b.jpg").touch()
        monkeypatch.chdir(photos)
        assert found("C:\\a\\b.jpg") == ["C:\\a\\b.jpg"]
