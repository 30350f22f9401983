"""Identities and cameras that are written in two ways, or are in training and test alike."""

import unicodedata
from pathlib import Path

import pytest

from dual_cross_attention.data.reid import load_reid
from tests.helpers import assert_says

HEADER = "path,identity,camera\n"


def write(root: Path, **splits: list[tuple[str, str]]) -> Path:
    """A CSV file for each split, of (identity, camera) each."""
    for split, rows in splits.items():
        text = HEADER
        for number, (identity, camera) in enumerate(rows):
            (root / f"{split}{number}.jpg").touch()
            text += f"{split}{number}.jpg,{identity},{camera}\n"
        (root / f"{split}.csv").write_text(text, encoding="utf-8")
    return root


def about(data, word: str) -> list[str]:
    return [warning for warning in data.warnings if word in warning]


TRAIN = [("90", "x"), ("91", "x")]


@pytest.mark.parametrize(
    ("query", "gallery"),
    [
        (("1", "2"), ("1.0", "2.0")),
        (("1.0", "2"), ("1", "2.")),
        (("1.00", "2"), ("1", "2.0")),
        (("-1", "2"), ("-1.0", "2")),
    ],
)
def test_whole_numbers_with_decimals_are_the_same_identity(tmp_path, query, gallery):
    """As pandas writes a column with gaps. Every query has its match, as where all are written alike."""
    data = load_reid("folder", write(
        tmp_path, train=TRAIN, query=[(name, "a") for name in query], gallery=[(name, "b") for name in gallery]
    ))  # fmt: skip
    assert (data.query.identities, data.gallery.identities) == ([0, 1], [0, 1])
    (line,) = about(data, "written in two ways")
    assert f"'{query[0]}'" in line and f"'{gallery[0]}'" in line and "identities" in line
    assert not about(data, "no match")


def test_cameras_too(tmp_path, refused):
    """Camera 1 and camera 1.0 are one: the match is under the query's own camera, and is left out."""
    write(tmp_path, train=TRAIN, query=[("5", "1")], gallery=[("5", "1.0")])
    with refused("none of the 1 queries", "the only camera is 1 "):
        load_reid("folder", tmp_path)
    write(tmp_path, gallery=[("5", "1.0"), ("5", "2.0")])
    data = load_reid("folder", tmp_path)
    assert data.query.cameras == [0] and data.gallery.cameras == [0, 1]
    assert len(about(data, "cameras are written in two ways")) == 1


def test_a_file_for_training_and_one_for_test(tmp_path):
    data = load_reid("folder", write(
        tmp_path, train=[("1.0", "a"), ("2.0", "a")], query=[("1", "a")], gallery=[("1", "b")]
    ))  # fmt: skip
    assert data.identities == ["1", "2.0"]  # what is written in one way only keeps its name
    assert_says(about(data, "in both")[0], "1 identities", "training and test", "'1'")


def test_names_that_are_written_alike_stay_as_they_are(tmp_path):
    """Runs of before know their identities by these names."""
    data = load_reid("folder", write(
        tmp_path, train=[("1.0", "a"), ("1.5", "a")], query=[("7.0", "a")], gallery=[("7.0", "b")]
    ))  # fmt: skip
    assert data.identities == ["1.0", "1.5"] and data.warnings == []


@pytest.mark.parametrize(("one", "other"), [("1", "001"), ("Ann", "ann"), ("ann  lee", "ann lee")])
def test_similar_names_stay_different_and_are_warned_about(tmp_path, one, other):
    data = load_reid("folder", write(
        tmp_path, train=TRAIN, query=[(one, "a"), (other, "a")], gallery=[(one, "b"), (other, "b")]
    ))  # fmt: skip
    assert len(set(data.query.identities)) == 2
    (line,) = about(data, "taken for different ones")
    assert f"'{one}'" in line and f"'{other}'" in line


def test_composed_and_decomposed_names_are_one_identity(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    for name in ("train/a/x_1.jpg", "train/b/x_1.jpg", f"query/{composed}/x_1.jpg", f"gallery/{decomposed}/y_1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = load_reid("folder", tmp_path)
    assert data.query.identities == data.gallery.identities == [0]
    assert len(about(data, "written in two ways")) == 1


def test_identities_in_training_and_test_are_counted(tmp_path):
    both = [(name, "a") for name in ("d", "c", "b", "a")]
    write(tmp_path, train=[*both, ("e", "a")], query=[("a", "a"), ("f", "a")], gallery=[*both, ("a", "b"), ("f", "b")])
    (line,) = about(load_reid("folder", tmp_path), "in both")
    assert_says(line, "folder: 4 identities", "both training and test", "'a', 'b', 'c':")
    assert not about(load_reid("folder", tmp_path, train=False), "in both")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("market1501",
         ["bounding_box_train/00{}_c1s1_1_0.jpg", "query/{}_c1s1_1_0.jpg", "bounding_box_test/0{}_c2s1_1_0.jpg"]),
        ("dukemtmc", ["bounding_box_train/00{}_c1_f1.jpg", "query/{}_c1_f1.jpg", "bounding_box_test/0{}_c2_f1.jpg"]),
        ("veri776", ["image_train/00{}_c1_1_0.jpg", "image_query/{}_c1_1_0.jpg", "image_test/0{}_c2_1_0.jpg"]),
    ],
)  # fmt: skip
def test_identities_of_releases_in_training_and_test(tmp_path, name, files):
    for file, numbers in zip(files, [(1, 2, 3), (2, 3, 4), (2, 3, 4)], strict=True):
        for number in numbers:
            (tmp_path / file.format(number)).parent.mkdir(exist_ok=True)
            (tmp_path / file.format(number)).touch()
    (line,) = about(load_reid(name, tmp_path), "in both")
    assert_says(line, f"{name}: 2 identities", "both training and test", "'002', '003':")


def test_spellings_of_one_number_in_a_release(tmp_path):
    names = ["bounding_box_train/01_c1s1_1_0.jpg", "bounding_box_train/1_c1s1_1_0.jpg", "query/2_c1s1_1_0.jpg"]
    for name in [*names, "bounding_box_test/2_c2s1_1_0.jpg"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert "'01' and '1'" in about(load_reid("market1501", tmp_path), "different ones")[0]


@pytest.mark.parametrize("other", ["c1", "C01", "cam1", "Cam_01", "camera 1", "01"])
def test_cameras_that_differ_in_a_prefix_are_pointed_out(tmp_path, other):
    data = load_reid("folder", write(tmp_path, train=TRAIN, query=[("5", "1")], gallery=[("5", other), ("5", "2")]))
    (line,) = about(data, "cameras differ from another")
    assert f"'{other}'" in line and "'1'" in line


def test_identities_keep_their_letters(tmp_path):
    data = load_reid(
        "folder", write(tmp_path, train=TRAIN, query=[("c5", "1")], gallery=[("c5", "2"), ("5", "2"), ("c05", "2")])
    )
    (line,) = about(data, "identities differ from another")
    assert "'c05' and 'c5'" in line
