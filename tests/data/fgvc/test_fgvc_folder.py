"""A user's own images, one folder per class."""

from itertools import pairwise
from pathlib import Path

import pytest

from dual_cross_attention.data import load_fgvc, read_image
from tests.helpers import any_says, names_of


@pytest.fixture
def folder(tmp_path, write_image) -> Path:
    for name in ("train/wren/b.jpg", "train/wren/a.JPEG", "train/Robin/c.png", "val/Robin/d.WebP", "val/wren/e.jpg"):
        write_image(tmp_path / name)
    return tmp_path


def test_classes_and_images_are_sorted(folder):
    data = load_fgvc("folder", folder)
    assert (data.name, data.classes) == ("folder", ["Robin", "wren"])
    assert (names_of(data.train), data.train.labels) == (["Robin/c.png", "wren/a.JPEG", "wren/b.jpg"], [0, 1, 1])
    assert (names_of(data.test), data.test.labels) == (["Robin/d.WebP", "wren/e.jpg"], [0, 1])
    for path in (*data.train.images, *data.test.images):
        assert read_image(path).mode == "RGB"


def test_test_in_place_of_val(folder):
    expected = load_fgvc("folder", folder).test
    (folder / "val").rename(folder / "test")
    data = load_fgvc("folder", folder)
    assert (names_of(data.test), data.test.labels) == (names_of(expected), expected.labels)


def test_other_files_are_left_out(folder):
    expected = load_fgvc("folder", folder)
    (folder / "train/wren/notes.txt").write_text("no image")
    (folder / "train/labels.csv").write_text("no class")
    (folder / "train/.cache").mkdir()
    (folder / "train/wren/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "train/wren/._a.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")  # of macOS: no image
    (folder / "__MACOSX/train").mkdir(parents=True)
    assert load_fgvc("folder", folder) == expected


def test_a_class_may_lack_test_images(folder):
    (folder / "val/wren/e.jpg").unlink()
    (folder / "val/wren").rmdir()
    assert load_fgvc("folder", folder).test.labels == [0]


def test_class_that_training_has_not(folder, write_image, refused):
    write_image(folder / "val/heron/a.jpg")
    with refused("'heron'", folder / "val", folder / "train", "Robin, wren"):
        load_fgvc("folder", folder)


def test_class_without_training_images(folder, refused):
    (folder / "train/wren/b.jpg").unlink()
    (folder / "train/wren/a.JPEG").rename(folder / "train/wren/a.heic")
    with refused(folder / "train/wren", ".jpg", "a.heic"):
        load_fgvc("folder", folder)


@pytest.mark.parametrize("missing", ["train", "val"])
def test_missing_split(folder, refused, missing):
    (folder / missing).rename(folder / "other")
    with refused("train/CLASS/*.jpg", "val/CLASS/*.jpg", folder, "other/"):
        load_fgvc("folder", folder)


def test_single_class_and_empty_split(tmp_path, write_image, refused):
    write_image(tmp_path / "train/wren/a.jpg")
    write_image(tmp_path / "val/wren/a.jpg")
    with refused("folder", "at least two classes", "wren"):
        load_fgvc("folder", tmp_path)
    write_image(tmp_path / "train/robin/a.jpg")
    (tmp_path / "val/wren/a.jpg").unlink()
    with refused("folder", "test split", "empty"):
        load_fgvc("folder", tmp_path)


def test_subfolders_of_a_class_are_read_as_torchvision_does(folder, write_image):
    from torchvision.datasets import ImageFolder

    for name in ("close/x.jpg", "close/left/y.png", "far/z.jpg"):
        write_image(folder / "train/wren" / name)
    write_image(folder / "val/Robin/2024/w.jpg")
    data = load_fgvc("folder", folder)
    for split, mine in (("train", data.train), ("val", data.test)):
        theirs = ImageFolder(folder / split)
        assert theirs.classes == data.classes
        assert sorted((Path(path), label) for path, label in theirs.samples) == sorted(
            zip(mine.images, mine.labels, strict=True)
        )
    assert [path.name for path in data.train.images] == ["c.png", "a.JPEG", "b.jpg", "x.jpg", "y.png", "z.jpg"]
    assert any_says(data.warnings, f"{folder / 'train'}: 3 of 6 images", "subfolders", "x.jpg")
    assert any_says(data.warnings, f"{folder / 'val'}: 1 of 3 images", "subfolders", "w.jpg")


def test_a_class_may_have_images_in_subfolders_alone(folder):
    (folder / "train/wren/in").mkdir()
    for name in ("a.JPEG", "b.jpg"):
        (folder / "train/wren" / name).rename(folder / "train/wren/in" / name)
    assert load_fgvc("folder", folder).train.labels == [0, 1, 1]


def test_left_out_images_are_counted(folder, write_image):
    taken = load_fgvc("folder", folder)
    jpeg = (folder / "train/wren/b.jpg").read_bytes()
    wren = folder / "train/wren"
    for name in ("a.jfif", "b.jfif", "c.JPG_", "without extension", "d.avif", "e.heic", "f.jp2", "g.tga"):
        (wren / name).write_bytes(jpeg)
    (folder / "val/wren/late.jfif").write_bytes(jpeg)
    for name in ("README", "list", "checksum.sha1"):
        (wren / name).write_text("words")
    (wren / "sidecar.json").write_bytes(jpeg)
    data = load_fgvc("folder", folder)
    assert (data.train, data.test) == (taken.train, taken.test)
    assert any_says(
        data.warnings, f"{folder / 'train'}: 8 files", "left out", ".jfif: 2", ".jpg_: 1", "no extension: 1"
    )
    assert any_says(data.warnings, f"{folder / 'val'}: 1 file is left out", "late.jfif")
    assert len(data.warnings) == 2


def test_images_in_no_class_and_hidden_ones_are_counted(folder, write_image):
    taken = load_fgvc("folder", folder)
    for name in ("train/1.jpg", "train/2.png", "val/3.jpg", "4.jpg"):
        write_image(folder / name)
    for name in ("train/wren/.h.jpg", "train/wren/.ipynb_checkpoints/a.jpg", "train/.trash/b.jpg"):
        write_image(folder / name)
    data = load_fgvc("folder", folder)
    assert (data.train, data.test) == (taken.train, taken.test)
    assert any_says(data.warnings, f"{folder / 'train'}: ", "no class folder", "2, such as", "1.jpg")
    assert any_says(data.warnings, f"{folder / 'val'}: ", "no class folder", "1, such as", "3.jpg")
    assert any_says(data.warnings, f"{folder}: ", "no class folder", "1, such as", "4.jpg")
    assert any_says(data.warnings, f"{folder / 'train'}: 3 hidden images")
    assert len(data.warnings) == 4


def test_an_empty_test_class_is_warned_about(folder):
    (folder / "val/wren/e.jpg").unlink()
    assert any_says(load_fgvc("folder", folder).warnings, "without an image: 1", "wren")


def test_links_in_a_circle_end(folder):
    taken = load_fgvc("folder", folder)
    (folder / "train/wren/up").symlink_to(folder / "train")
    (folder / "train/wren/self").symlink_to(folder / "train/wren")
    (folder / "train/wren/down").mkdir()
    (folder / "train/wren/down/again").symlink_to(folder / "train/wren")
    (folder / "train/all").symlink_to(folder)  # no class either
    data = load_fgvc("folder", folder)
    assert (data.classes, data.train, data.test) == (taken.classes, taken.train, taken.test)
    assert any_says(data.warnings, "4 links are not followed")


def test_links_to_folders_elsewhere_are_followed(folder, tmp_path_factory, write_image):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_image(elsewhere / "more/x.jpg")
    (folder / "train/wren/link").symlink_to(elsewhere)
    (folder / "train/crow").symlink_to(elsewhere)
    data = load_fgvc("folder", folder)
    assert data.classes == ["Robin", "crow", "wren"]
    assert data.train.labels == [0, 1, 2, 2, 2]


def test_links_that_branch_do_not_multiply(folder):
    """Two links in each of 40 folders to the next one: 2 to the power of 40 paths to the last."""
    levels = [folder / f"train/wren/{number}" for number in range(40)]
    for level in levels:
        level.mkdir()
    for level, following in pairwise(levels):
        for name in ("left", "right"):
            (level / name).symlink_to(following)
    (levels[-1] / "z.jpg").write_bytes((folder / "train/wren/b.jpg").read_bytes())
    assert len(load_fgvc("folder", folder).train) == 4


def test_val_and_test_both_there(folder, write_image):
    expected = load_fgvc("folder", folder)
    write_image(folder / "test/Robin/q.jpg")
    data = load_fgvc("folder", folder)
    assert data.test == expected.test
    assert any_says(data.warnings, "val/ is taken", "test/ is not read")
    write_image(folder / "Validation/Robin/q.jpg")
    assert any_says(load_fgvc("folder", folder).warnings, "val/ is taken", "Validation/ and test/", "not read")
    (folder / "val").rename(folder / "elsewhere")
    assert names_of(load_fgvc("folder", folder).test) == ["Robin/q.jpg"]


NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("in_train", "in_val"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_composed_and_decomposed_names_are_the_same_class(folder, write_image, in_train, in_val):
    write_image(folder / "train" / in_train / "x.jpg")
    write_image(folder / "val" / in_val / "y.jpg")
    data = load_fgvc("folder", folder)
    assert data.classes == ["Robin", NFC, "wren"]
    assert (data.train.labels, data.test.labels) == ([0, 1, 2, 2], [0, 1, 2])
    for path in (*data.train.images, *data.test.images):
        assert path.is_file()
    assert data.warnings == []


def test_a_class_in_both_spellings_is_one(folder, write_image):
    for number, name in enumerate((NFC, NFD)):
        write_image(folder / "train" / name / f"{number}.jpg")
    data = load_fgvc("folder", folder)
    assert data.classes == ["Robin", NFC, "wren"]
    assert data.train.labels == [0, 1, 1, 2, 2]
    assert any_says(data.warnings, "1 classes", "taken together")


def test_labels_in_the_order_of_a_model(folder, write_image):
    """Sorted, é is behind z composed, and before it decomposed."""
    for root, name in ((folder / "one", "\u00e9tourneau"), (folder / "two", "e\u0301tourneau")):
        for split in ("train", "val"):
            for each in (name, "wren"):
                write_image(root / split / each / f"{each[-1]}.jpg")
    one, two = (load_fgvc("folder", folder / name) for name in ("one", "two"))
    assert one.classes == ["wren", "\u00e9tourneau"] and two.classes == one.classes[::-1]
    aligned = two.with_order_of(one.classes)
    assert aligned.classes == one.classes
    for split in ("train", "test"):
        listed = getattr(aligned, split)
        assert [aligned.classes[label][-1] for label in listed.labels] == [path.stem for path in listed.images]
    assert two.with_order_of(["wren", "owl"]) is two
