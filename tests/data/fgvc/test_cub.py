"""The official CUB-200-2011 layout, from a small tree, broken in every way, and the real one."""

import os
from pathlib import Path

import pytest

from dual_cross_attention.data import load_fgvc, read_image

CLASSES = ["001.Black_footed_Albatross", "002.Groove_billed_Ani", "010.Red_winged_Blackbird"]
PAGE = "https://www.vision.caltech.edu/datasets/cub_200_2011/"


@pytest.fixture
def cub(tmp_path, write_image) -> Path:
    """Three classes (ids 1, 2 and 10), four images each; of each class the first and the last are for training."""
    root = tmp_path / "CUB_200_2011"
    images = [f"{name}/{name}_{i}.jpg" for name in CLASSES for i in range(4)]
    for number, image in enumerate(images):
        write_image(root / "images" / image, (20 * number, 0, 0))
    files = {
        "classes.txt": zip((1, 2, 10), CLASSES, strict=True),
        "images.txt": enumerate(images, start=1),
        "image_class_labels.txt": ((i + 1, (1, 2, 10)[i // 4]) for i in range(12)),
        "train_test_split.txt": ((i + 1, int(i % 4 in (0, 3))) for i in range(12)),
    }
    for name, rows in files.items():
        (root / name).write_text("".join(f"{key} {value}\n" for key, value in rows))
    return root


def test_own_folder_and_the_one_that_holds_it(cub):
    for data_root in (cub, cub.parent, f"{cub}/"):
        data = load_fgvc("cub", data_root)
        assert (data.name, data.classes) == ("cub", CLASSES)
        assert data.train.labels == [0, 0, 1, 1, 2, 2]
        assert data.test.labels == [0, 0, 1, 1, 2, 2]
        assert [path.name[-5] for path in data.train.images] == ["0", "3"] * 3
        assert [path.name[-5] for path in data.test.images] == ["1", "2"] * 3
        for images in (data.train, data.test):
            for path, label in zip(images.images, images.labels, strict=True):
                assert path.parent.name == CLASSES[label]
                assert read_image(path).size == (10, 8)


def test_lines_in_any_order_and_a_blank_one_at_the_end(cub):
    expected = load_fgvc("cub", cub)
    for name in ("image_class_labels.txt", "train_test_split.txt"):
        lines = (cub / name).read_text().splitlines()
        (cub / name).write_text("\r\n".join(reversed(lines)) + "\r\n\r\n")
    assert load_fgvc("cub", cub) == expected


@pytest.mark.parametrize(
    ("name", "line", "becomes", "words"),
    [
        ("images.txt", 3, "3", ["images.txt, line 3", "id value"]),
        ("images.txt", 3, "", ["images.txt, line 3", "id value"]),
        ("images.txt", 3, "2 again.jpg", ["images.txt, line 3", "id 2", "second time"]),
        ("image_class_labels.txt", 5, "5 3", ["image_class_labels.txt, line 5", "class of classes.txt", "'3'"]),
        ("image_class_labels.txt", 5, "5", ["image_class_labels.txt, line 5"]),
        ("image_class_labels.txt", 5, "99 2", ["image_class_labels.txt", "the same images", "in one of them only"]),
        ("train_test_split.txt", 7, "7 2", ["train_test_split.txt, line 7", "1 (training) or 0 (test)", "'2'"]),
        ("train_test_split.txt", 12, "", ["train_test_split.txt", "12 and 11", "image 12"]),
        ("classes.txt", 2, "2", ["classes.txt, line 2"]),
    ],
)
def test_files_that_disagree_are_named(cub, refused, name, line, becomes, words):
    lines = (cub / name).read_text().splitlines()
    lines[line - 1] = becomes
    (cub / name).write_text("\n".join(lines))
    with refused("cub", *words):
        load_fgvc("cub", cub)


@pytest.mark.parametrize("name", ["images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"])
def test_missing_file(cub, refused, name):
    (cub / name).unlink()
    with refused("CUB_200_2011/ with images/", name, PAGE):
        load_fgvc("cub", cub)


def test_missing_images_folder(cub, refused):
    (cub / "images").rename(cub / "pictures")
    with refused(cub / "images", "does not exist", PAGE):
        load_fgvc("cub", cub)


def test_file_that_is_not_text(cub, refused):
    (cub / "classes.txt").write_bytes(b"\xff\xfe\x00")
    with refused(cub / "classes.txt", "as text"):
        load_fgvc("cub", cub)


def test_split_without_images(cub, refused):
    lines = (cub / "train_test_split.txt").read_text().splitlines()
    for flag, split in (("1", "test"), ("0", "training")):
        (cub / "train_test_split.txt").write_text("\n".join(f"{line.split()[0]} {flag}" for line in lines))
        with refused(f"the {split} split is empty"):
            load_fgvc("cub", cub)


def test_single_class(cub, refused):
    (cub / "classes.txt").write_text(f"1 {CLASSES[0]}\n")
    (cub / "image_class_labels.txt").write_text("".join(f"{i} 1\n" for i in range(1, 13)))
    with refused("at least two classes", CLASSES[0]):
        load_fgvc("cub", cub)


SHARED = Path(os.environ.get("DCAL_SHARED") or Path(__file__).parents[4] / "shared")


@pytest.mark.skipif(not (SHARED / "data" / "CUB_200_2011").is_dir(), reason="the real images are not here")
def test_real_birds():
    data = load_fgvc("cub", SHARED / "data")
    assert (len(data.classes), len(data.train), len(data.test)) == (100, 2999, 2903)
    assert set(data.train.labels) == set(data.test.labels) == set(range(100))
    assert data.classes[0] == "001.Black_footed_Albatross"
    for images in (data.train, data.test):
        folders = [path.parent.name for path in images.images]
        assert folders == [data.classes[label] for label in images.labels]
        assert read_image(images.images[-1]).size == (227, 227)


def test_images_that_are_not_listed_are_counted(cub, write_image):
    expected = load_fgvc("cub", cub)
    write_image(cub / "images" / CLASSES[0] / "more.jpg")
    write_image(cub / "images" / "more.jpg")
    (cub / "images" / CLASSES[1] / "more.jfif").write_bytes((cub / "images" / "more.jpg").read_bytes())
    data = load_fgvc("cub", cub)
    assert (data.train, data.test) == (expected.train, expected.test)
    assert len(data.warnings) == 2
    assert "1 file is left out" in data.warnings[0] and ".jfif: 1" in data.warnings[0]
    assert "2 images" in data.warnings[1] and "images.txt" in data.warnings[1]
