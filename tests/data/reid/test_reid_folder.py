"""A user's own images for re-identification, by folders and by CSV files."""

from pathlib import Path

import pytest

from dual_cross_attention.data.reid import load_reid
from tests.helpers import assert_says, names_of

IMAGES = {
    "train": ["bo/door_1.jpg", "ann/yard_b.PNG", "ann/door_a.jpg"],
    "query": ["zoe/gate_1.jpg", "Eve/door_1.jpg"],
    "gallery": ["zoe/door_2.jpg", "Eve/gate_3.jpg", "nobody/attic_1.webp"],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, names in IMAGES.items():
        for name in names:
            (tmp_path / split / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / split / name).touch()
    return tmp_path


def write_csv(folder: Path, split: str, text: str | None = None) -> Path:
    """query.csv with what the folders say, or with another text; the folder becomes query_images."""
    rows = [f"{split}_images/{name},{name.split('/')[0]},{name.split('/')[1].split('_')[0]}" for name in IMAGES[split]]
    (folder / split).rename(folder / f"{split}_images")
    table = folder / f"{split}.csv"
    table.write_text("path,identity,camera\n" + "\n".join(rows) if text is None else text, encoding="utf-8")
    return table


def test_folders(folder):
    data = load_reid("folder", folder)
    assert (data.name, data.identities, data.warnings) == ("folder", ["ann", "bo"], [])
    assert names_of(data.train) == ["ann/door_a.jpg", "ann/yard_b.PNG", "bo/door_1.jpg"]
    assert (data.train.identities, data.train.cameras) == ([0, 0, 1], [0, 1, 0])
    assert names_of(data.query) == ["Eve/door_1.jpg", "zoe/gate_1.jpg"]
    assert names_of(data.gallery) == ["Eve/gate_3.jpg", "nobody/attic_1.webp", "zoe/door_2.jpg"]
    # Eve, nobody, zoe; attic, door, gate
    assert (data.query.identities, data.query.cameras) == ([0, 2], [1, 2])
    assert (data.gallery.identities, data.gallery.cameras) == ([0, 1, 2], [2, 0, 1])


def test_csv_says_the_same_in_its_own_order(folder):
    for split in IMAGES:
        write_csv(folder, split)
    data = load_reid("folder", folder)
    assert (data.identities, data.warnings) == (["ann", "bo"], [])
    assert names_of(data.train) == IMAGES["train"]
    assert (data.train.identities, data.train.cameras) == ([1, 0, 0], [0, 1, 0])
    assert (data.query.identities, data.query.cameras) == ([2, 0], [2, 1])
    assert (data.gallery.identities, data.gallery.cameras) == ([2, 0, 1], [1, 2, 0])
    assert all(path.is_file() for images in (data.train, data.query, data.gallery) for path in images.images)


def test_csv_with_more_columns_absolute_paths_and_commas(folder):
    expected = load_reid("folder", folder)
    gate, door = folder / "query_images/zoe/gate_1.jpg", "query_images/Eve/door_1.jpg"
    text = f'\ufeffcamera,day,path,identity\r\ngate,1,"{gate}",zoe\r\n\r\ndoor,2,{door}, Eve\r\n'
    write_csv(folder, "query", text)
    data = load_reid("folder", folder)
    assert names_of(data.query) == ["zoe/gate_1.jpg", "Eve/door_1.jpg"]
    assert (data.query.identities, data.query.cameras) == ([2, 0], [2, 1])
    assert (data.train, data.gallery) == (expected.train, expected.gallery)
    for split in ("query", "gallery"):
        table = folder / f"{split}.csv"
        if split == "gallery":
            write_csv(folder, split)
        table.write_text(
            table.read_text(encoding="utf-8-sig").replace("zoe\n", '"Zoe, 2nd"\n').replace(",zoe,", ',"Zoe, 2nd",')
        )
    assert load_reid("folder", folder).query.identities == [1, 0]


def test_a_csv_goes_before_a_folder(folder):
    (folder / "query.csv").write_text("path,identity,camera\nquery/zoe/gate_1.jpg,zoe,tower\n")
    data = load_reid("folder", folder)
    assert (names_of(data.query), data.query.cameras) == (["zoe/gate_1.jpg"], [3])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["line 1", "path,identity,camera", "path"]),
        ("path,identity\na.jpg,ann\n", ["line 1", "no camera"]),
        ("query_images/zoe/gate_1.jpg,zoe,gate\n", ["line 1", "no path"]),
        ("path,identity,camera\n", ["lists none"]),
        ("path,identity,camera\nquery_images/zoe/gate_1.jpg,zoe,gate\n,zoe,gate\n", ["line 3", "path is empty"]),
        ("path,identity,camera\n\nquery_images/zoe/gate_1.jpg, ,gate\n", ["line 3", "identity is empty"]),
        ("path,identity,camera\nquery_images/zoe/gate_1.jpg,zoe\n", ["line 2", "camera is empty"]),
        (
            "path,identity,camera\nquery_images/zoe/gate_1.jpg,zoe,gate\nquery_images/zoe/none.jpg,zoe,gate\n",
            ["line 3", "query_images/zoe/none.jpg does not exist"],
        ),
        ("path,identity,camera\nnowhere/none.jpg,zoe,gate\n", ["line 2", "nowhere/none.jpg does not exist"]),
        (
            "path,identity,camera\nquery_images/zoe/gate_1.jpg,zoe,gate\nquery_images/zoe/gate_1.jpg,zoe,door\n",
            ["line 3", "gate_1.jpg is listed in line 2 already"],
        ),
        ('path,identity,camera\n"a"b,zoe,gate\n', ["as CSV"]),
    ],
)
def test_bad_csv(folder, refused, text, words):
    table = write_csv(folder, "query", text)
    with refused("folder", table, *words):
        load_reid("folder", folder)


def test_csv_that_is_not_text(folder, refused):
    (folder / "query.csv").write_bytes(b"\xff\xfe\x00")
    with refused("folder", folder / "query.csv", "as text"):
        load_reid("folder", folder)


def test_names_without_camera(folder, refused):
    expected = load_reid("folder", folder)
    for name in ("Eve/face.jpg", "zoe/_1.jpg"):
        (folder / "query" / name).touch()
    data = load_reid("folder", folder)
    assert data.query == expected.query
    assert len(data.warnings) == 1
    assert_says(data.warnings[0], f"folder: {folder / 'query'}: 2 of 4 images", "left out", "face.jpg")
    for name in IMAGES["query"]:
        (folder / "query" / name).unlink()
    with refused("folder", folder / "query", "none of the 2", "camera", '"_"', "door_0001.jpg", "CSV", "face.jpg"):
        load_reid("folder", folder)


def test_other_files_are_left_out(folder):
    expected = load_reid("folder", folder)
    for name in ("query/Eve/notes_1.txt", "query/Eve/.door_2.jpg", "query/.cache/door_1.jpg", "query/Eve/door_1.xml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert load_reid("folder", folder) == expected


def test_without_training_images(folder, refused):
    expected = load_reid("folder", folder)
    (folder / "train").rename(folder / "elsewhere")
    data = load_reid("folder", folder, train=False)
    assert (data.train, data.identities, data.query, data.gallery) == (None, [], expected.query, expected.gallery)
    with refused("folder", "train/, query/ and gallery/", "train.csv", folder, "elsewhere/"):
        load_reid("folder", folder)


def test_split_without_images(folder, refused):
    for file in folder.glob("query/*/*"):
        file.unlink()
    with refused("folder", "IDENTITY/CAMERA_*.jpg", folder / "query", "Eve/"):
        load_reid("folder", folder)


def test_queries_without_a_match_from_another_camera(folder, refused):
    (folder / "gallery/Eve/gate_3.jpg").rename(folder / "gallery/Eve/door_3.jpg")
    warnings = load_reid("folder", folder).warnings
    assert [warning[:38] for warning in warnings] == ["1 of 2 queries (such as door_1.jpg) ha"]
    (folder / "gallery/zoe/door_2.jpg").unlink()
    with refused("folder", "none of the 2 queries", "door_1.jpg", "another camera"):
        load_reid("folder", folder)


def test_single_training_identity(folder, refused):
    (folder / "train/bo/door_1.jpg").unlink()
    with refused("folder", "at least two", "training identities", "ann"):
        load_reid("folder", folder)
