"""MSMT17 from small trees of both versions, broken in every way."""

from pathlib import Path

import pytest

from dual_cross_attention.data.reid import load_reid
from tests.helpers import assert_lines, assert_says

PAGE = "https://www.pkuvmc.com/dataset.html"
LISTS = {
    "list_train.txt": [("0000/0000_000_01_0303morning_0015_0.jpg", 0), ("0010/0010_001_12_0113noon_0001_1.jpg", 10)],
    "list_val.txt": [("0002/0002_000_15_0302afternoon_0020_0.jpg", 2), ("0000/0000_002_03_0303noon_0007_0.jpg", 0)],
    "list_query.txt": [("0001/0001_000_04_0303morning_0100_0.jpg", 1), ("0000/0000_000_05_0303noon_0100_0.jpg", 0)],
    "list_gallery.txt": [
        ("0000/0000_001_14_0303noon_0101_0.jpg", 0),
        ("3000/3000_001_14_0303noon_0101_0.jpg", 3000),
        ("0001/0001_001_01_0303noon_0101_0_ex.jpg", 1),
    ],
}


def tree(root: Path, train: str, test: str) -> Path:
    for name, lines in LISTS.items():
        folder = root / (train if name in ("list_train.txt", "list_val.txt") else test)
        for path, _ in lines:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
        (root / name).write_text("".join(f"{path} {identity}\n" for path, identity in lines))
    return root


@pytest.fixture
def msmt17(tmp_path) -> Path:
    return tree(tmp_path / "MSMT17_V1", "train", "test")


@pytest.mark.parametrize(
    ("version", "train", "test"), [("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2")]
)
def test_both_versions(tmp_path, version, train, test):
    root = tree(tmp_path / version, train, test)
    data = load_reid("msmt17", root)
    assert (data.name, data.identities) == ("msmt17", ["0000", "0002", "0010"])
    assert data.train.images == [root / train / path for path, _ in LISTS["list_train.txt"] + LISTS["list_val.txt"]]
    assert (data.train.identities, data.train.cameras) == ([0, 2, 1, 0], [1, 12, 15, 3])
    assert data.query.images == [root / test / path for path, _ in LISTS["list_query.txt"]]
    assert (data.query.identities, data.query.cameras) == ([1, 0], [4, 5])
    assert data.gallery.images == [root / test / path for path, _ in LISTS["list_gallery.txt"]]
    assert (data.gallery.identities, data.gallery.cameras) == ([0, 3000, 1], [14, 14, 1])
    assert_lines(
        data.warnings,
        ("msmt17", "4 of 32,621 training images", "(3 of 1,041 identities)", "32,617 are missing"),
        ("msmt17", "2 of 11,659 query images", "(2 of 3,060 identities)", "11,657 are missing"),
        ("msmt17", "3 of 82,161 gallery images", "(3 of 3,060 identities)", "82,158 are missing"),
    )
    assert load_reid("msmt17", tmp_path) == data


def test_both_versions_at_once(msmt17, refused):
    tree(msmt17.parent / "MSMT17_V2", "mask_train_v2", "mask_test_v2")
    with refused("msmt17", msmt17.parent, "MSMT17_V1", "MSMT17_V2", "one of them"):
        load_reid("msmt17", msmt17.parent)
    assert load_reid("msmt17", msmt17).query.images[0].parents[1] == msmt17 / "test"


def test_without_training_images(msmt17, refused):
    expected = load_reid("msmt17", msmt17)
    (msmt17 / "train").rename(msmt17 / "elsewhere")
    with refused("msmt17", "train or mask_train_v2", "elsewhere/", PAGE):
        load_reid("msmt17", msmt17)
    for name in ("list_train.txt", "list_val.txt"):
        (msmt17 / name).unlink()
    data = load_reid("msmt17", msmt17, train=False)
    assert (data.train, data.identities, data.query, data.gallery) == (None, [], expected.query, expected.gallery)


@pytest.mark.parametrize("name", [*LISTS])
def test_missing_empty_and_unreadable_list(msmt17, refused, name):
    (msmt17 / name).write_text("\n\n")
    with refused("msmt17", msmt17 / name, "lists none", PAGE):
        load_reid("msmt17", msmt17)
    (msmt17 / name).write_bytes(b"\xff\xfe\x00")
    with refused("msmt17", msmt17 / name, "as text"):
        load_reid("msmt17", msmt17)
    (msmt17 / name).unlink()
    with refused("msmt17", name, PAGE):
        load_reid("msmt17", msmt17)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0001/0001_000_04_0303morning_0100_0.jpg", ["path identity"]),
        ("0001/0001_000_04_0303morning_0100_0.jpg one", ["path identity", "one"]),
        ("0000/0000_000_05_0303noon_0100_0.jpg 3", ["0000/0000_000_05_0303noon_0100_0.jpg", "second time"]),
    ],
)
def test_bad_line(msmt17, refused, line, words):
    with (msmt17 / "list_query.txt").open("a") as file:
        file.write(f"\n{line}\n")
    with refused("msmt17", msmt17 / "list_query.txt", "line 4", *words):
        load_reid("msmt17", msmt17)


def test_listed_images_that_are_not_there(msmt17, refused):
    expected = load_reid("msmt17", msmt17)
    (msmt17 / "test" / LISTS["list_gallery.txt"][1][0]).unlink()
    data = load_reid("msmt17", msmt17)
    assert data.gallery.identities == [0, 1]
    assert data.query == expected.query
    gone = msmt17 / "test" / LISTS["list_gallery.txt"][1][0]
    assert_says(data.warnings[0], "msmt17: 1 of the 3 images", msmt17 / "list_gallery.txt", "left out", gone)
    for path, _ in LISTS["list_train.txt"]:
        (msmt17 / "train" / path).unlink()
    (msmt17 / "train" / "0010").rmdir()
    with refused("msmt17", "none of the 2", msmt17 / "list_train.txt", LISTS["list_train.txt"][0][0], PAGE):
        load_reid("msmt17", msmt17)


def test_names_without_camera(msmt17, refused):
    expected = load_reid("msmt17", msmt17)
    for path in ("0007/short.jpg", "0007/0007_000_x4_0303noon_0100_0.jpg"):
        (msmt17 / "test" / path).parent.mkdir(exist_ok=True)
        (msmt17 / "test" / path).touch()
    added = "0007/short.jpg 7\n0007/0007_000_x4_0303noon_0100_0.jpg 7\n"
    (msmt17 / "list_query.txt").write_text((msmt17 / "list_query.txt").read_text() + added)
    data = load_reid("msmt17", msmt17)
    assert (data.query, data.warnings[1:]) == (expected.query, expected.warnings)
    assert_says(data.warnings[0], f"{msmt17 / 'list_query.txt'}: 2 of 4 images", "left out", "short.jpg")
    (msmt17 / "list_query.txt").write_text(added)
    with refused("msmt17", msmt17 / "list_query.txt", "none of the 2", "camera", "short.jpg"):
        load_reid("msmt17", msmt17)


def test_another_folder(tmp_path, refused):
    with refused("msmt17", "MSMT17_V1/", "mask_train_v2/", tmp_path, "it is empty", PAGE):
        load_reid("msmt17", tmp_path)
