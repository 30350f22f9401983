"""CSV files as spreadsheets and other systems write them; lists of releases that were written on Windows."""

import unicodedata
from pathlib import Path

import pytest

from dual_cross_attention.data.reid import load_reid
from tests.helpers import any_says

ROWS = {
    "train": [("a/door_1.jpg", "ann", "door"), ("b/hall_1.jpg", "bo", "hall")],
    "query": [("e/door_1.jpg", "eve", "door"), ("z/hall_1.jpg", "zoe", "hall")],
    "gallery": [("e/hall_2.jpg", "eve", "hall"), ("z/door_2.jpg", "zoe", "door")],
}


def write(root: Path, split: str, separator=",", header="path,identity,camera", path=str, rows=None, images=True):
    """SPLIT.csv and its images in the folder images/."""
    lines = [header.replace(",", separator)]
    for name, *labels in rows or ROWS[split]:
        image = root / "images" / split / name
        image.parent.mkdir(parents=True, exist_ok=True)
        if images:
            image.touch()
        lines.append(separator.join([path(f"images/{split}/{name}"), *labels]))
    (root / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def tables(tmp_path) -> Path:
    for split in ROWS:
        write(tmp_path, split)
    return tmp_path


def seen(data):
    return [(side.images, list(side.identities), list(side.cameras)) for side in (data.train, data.query, data.gallery)]


@pytest.mark.parametrize(("separator", "separated"), [(";", "a semicolon"), ("\t", "a tab"), ("|", "a vertical bar")])
def test_the_separator_is_detected_and_reported(tables, separator, separated):
    expected = load_reid("folder", tables)
    assert not any("between its columns" in note for note in expected.notes)
    write(tables, "query", separator)
    data = load_reid("folder", tables)
    assert seen(data) == seen(expected)
    assert any_says(data.notes, "query.csv", separated)


def test_headers_in_capitals_and_with_spaces(tables):
    expected = seen(load_reid("folder", tables))
    write(tables, "query", header=" Path, IDENTITY ,Camera")
    assert seen(load_reid("folder", tables)) == expected


def test_a_missing_column_is_named_whatever_separates_them(tables, refused):
    (tables / "query.csv").write_text("path;identity\nimages/query/e/door_1.jpg;eve\n")
    with refused("query.csv, line 1", "path,identity,camera", "no camera"):
        load_reid("folder", tables)
    (tables / "query.csv").write_text("path;identity;camera\nimages/query/e/door_1.jpg;eve;door;more\n")
    with refused("query.csv, line 2", "a semicolon needs quotes"):
        load_reid("folder", tables)


def test_backslashes_are_slashes(tables):
    expected = seen(load_reid("folder", tables))
    write(tables, "query", path=lambda name: name.replace("/", "\\"))
    write(tables, "gallery", path=lambda name: ".\\" + name.replace("/", "\\"))
    data = load_reid("folder", tables)
    assert seen(data) == expected
    for name in ("query", "gallery"):
        assert any_says(data.notes, f"{name}.csv", "backslashes of 2 paths")


def test_a_file_with_a_backslash_in_its_name(tables):
    (tables / "odd\\name.jpg").touch()
    (tables / "query.csv").write_text("path,identity,camera\nodd\\name.jpg,eve,door\n")
    data = load_reid("folder", tables)
    assert [path.name for path in data.query.images] == ["odd\\name.jpg"]
    assert not any("the backslashes of" in note for note in data.notes)


@pytest.mark.parametrize("root", ["C:\\images\\", "d:/images/", "\\\\server\\share\\"])
def test_drive_letters_and_servers_are_refused(tables, refused, root):
    write(tables, "query", path=lambda name: root + name)
    with refused("query.csv, line 2", "relative", "Windows", "server" if "server" in root else root[:2]):
        load_reid("folder", tables)


def test_backslashes_do_not_lead_out(tables, refused):
    write(tables, "query", path=lambda name: "..\\" + name)
    with refused("query.csv, line 2", "inside of"):
        load_reid("folder", tables)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_paths_in_another_form_of_unicode(tables, forms):
    """As of a CSV file that was written on Windows, beside folders that were unpacked on a Mac."""
    listed, on_disk = (unicodedata.normalize(form, "zoë/é_1.jpg") for form in forms)
    expected = load_reid("folder", tables)
    write(tables, "query", rows=[(listed, "zoe", "hall")], images=False)
    (tables / "images/query" / listed).parent.rmdir()
    (tables / "images/query" / on_disk).parent.mkdir()
    (tables / "images/query" / on_disk).touch()
    data = load_reid("folder", tables)
    assert data.query.images == [tables / "images/query" / on_disk]
    assert data.query.identities == expected.query.identities[1:]
    assert any_says(data.notes, "1 paths", "Unicode form")


def test_a_path_that_is_not_there_in_any_form(tables, refused):
    write(tables, "query", rows=[("zoë/é_1.jpg", "zoe", "hall")], images=False)
    with refused("query.csv, line 2", "does not exist"):
        load_reid("folder", tables)


def test_lists_of_releases_with_backslashes(tmp_path):
    for name in ("image_train/0002_c001_1_0.jpg", "image_train/x/0003_c001_1_0.jpg", "image_query/0001_c001_1_0.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "image_test").mkdir()
    (tmp_path / "image_test/0001_c002_1_0.jpg").touch()
    (tmp_path / "name_train.txt").write_text("0002_c001_1_0.jpg\nx\\0003_c001_1_0.jpg\n")
    assert load_reid("veri776", tmp_path).train.images[1] == tmp_path / "image_train/x/0003_c001_1_0.jpg"
