"""A user's own pictures, one folder per class."""

from pathlib import Path

import pytest

from dual_cross_attention.data import load_fgvc, read_picture


@pytest.fixture
def folder(tmp_path, write_picture) -> Path:
    for name in ("train/wren/b.jpg", "train/wren/a.JPEG", "train/Robin/c.png", "val/Robin/d.WebP", "val/wren/e.jpg"):
        write_picture(tmp_path / name)
    return tmp_path


def names(pictures) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in pictures.pictures]


def test_classes_and_pictures_are_sorted(folder):
    data = load_fgvc("folder", folder)
    assert (data.name, data.classes) == ("folder", ["Robin", "wren"])
    assert (names(data.train), data.train.labels) == (["Robin/c.png", "wren/a.JPEG", "wren/b.jpg"], [0, 1, 1])
    assert (names(data.test), data.test.labels) == (["Robin/d.WebP", "wren/e.jpg"], [0, 1])
    for path in (*data.train.pictures, *data.test.pictures):
        assert read_picture(path).mode == "RGB"


def test_test_in_place_of_val(folder):
    expected = load_fgvc("folder", folder).test
    (folder / "val").rename(folder / "test")
    data = load_fgvc("folder", folder)
    assert (names(data.test), data.test.labels) == (names(expected), expected.labels)


def test_other_files_are_left_out(folder):
    expected = load_fgvc("folder", folder)
    (folder / "train/wren/notes.txt").write_text("no picture")
    (folder / "train/labels.csv").write_text("no class")
    (folder / "train/.cache").mkdir()
    (folder / "train/wren/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "train/wren/._a.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")  # of macOS: no image
    (folder / "__MACOSX/train").mkdir(parents=True)
    assert load_fgvc("folder", folder) == expected


def test_a_class_may_lack_test_pictures(folder):
    (folder / "val/wren/e.jpg").unlink()
    (folder / "val/wren").rmdir()
    assert load_fgvc("folder", folder).test.labels == [0]


def test_class_that_training_has_not(folder, write_picture, refused):
    write_picture(folder / "val/heron/a.jpg")
    with refused("'heron'", folder / "val", folder / "train", "Robin, wren"):
        load_fgvc("folder", folder)


def test_class_without_training_pictures(folder, refused):
    (folder / "train/wren/b.jpg").unlink()
    (folder / "train/wren/a.JPEG").rename(folder / "train/wren/a.heic")
    with refused(folder / "train/wren", ".jpg", "a.heic"):
        load_fgvc("folder", folder)


@pytest.mark.parametrize("missing", ["train", "val"])
def test_missing_split(folder, refused, missing):
    (folder / missing).rename(folder / "other")
    with refused("train/CLASS/*.jpg and val/CLASS/*.jpg", folder, "other/"):
        load_fgvc("folder", folder)


def test_single_class_and_empty_split(tmp_path, write_picture, refused):
    write_picture(tmp_path / "train/wren/a.jpg")
    write_picture(tmp_path / "val/wren/a.jpg")
    with refused("folder", "at least two classes", "wren"):
        load_fgvc("folder", tmp_path)
    write_picture(tmp_path / "train/robin/a.jpg")
    (tmp_path / "val/wren/a.jpg").unlink()
    with refused("folder", "the test split is empty"):
        load_fgvc("folder", tmp_path)
