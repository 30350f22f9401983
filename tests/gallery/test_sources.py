"""Which images and identities a folder or a CSV file names."""

import os

import pytest
from PIL import Image

from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery.sources import find_named_images, shown_path


@pytest.fixture
def photos(tmp_path):
    for name in ("ann/1.png", "ann/2023/2.png", "bob/3.png", "4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def found(source, identity=None):
    notes = []
    images = find_named_images(os.fspath(source), notes, identity)
    return {os.path.relpath(path, source.parent): name for path, name in images}, notes


def test_a_folder_of_identities(photos):
    images, notes = found(photos)
    base = photos.name
    assert images == {
        f"{base}/ann/1.png": "ann",
        f"{base}/ann/2023/2.png": "ann",
        f"{base}/bob/3.png": "bob",
        f"{base}/4.png": None,
    }
    assert len(notes) == 1 and "1 of 4" in notes[0] and "--identity" in notes[0]
    assert set(found(photos, "eve")[0].values()) == {"eve"} and found(photos, "eve")[1] == []
    assert found(photos / "4.png")[0] == {"4.png": None}


def test_a_csv_file(photos):
    table = photos / "list.csv"
    table.write_text("Date;PATH;identity\n2024;ann/1.png;ann\n;bob\\3.png;\n2024;ann/1.png;12\n", encoding="utf-8-sig")
    images, notes = found(table)
    assert images == {"ann/1.png": "12", "bob/3.png": None}
    assert "semicolon" in notes[0] and "1 of 3" in notes[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1"),
        ("file,identity\n1.png,ann\n", "no path"),
        ("path,identity,path\n1.png,a,b\n", "several path"),
        ("path,identity\n", "none"),
        ("path,identity\n,ann\n", "line 2"),
        ("path,identity\n1.png,ann,more\n", "got 3"),
        ("path,identity\n../1.png,ann\n", "inside"),
        ("path,identity\n/etc/passwd,ann\n", "inside"),
        ("path,identity\nC:\\x\\1.png,ann\n", "Windows"),
        ('path,identity\n"1.png,ann\n', "CSV"),
        ("path,identity\n\x00,ann\n", "NUL"),
        (b"path,identity\n\xff.png,ann\n", "UTF-8"),
    ],
)
def test_hostile_csv_files(tmp_path, text, said):
    table = tmp_path / "list.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as refused:
        find_named_images(os.fspath(table), [])
    assert said in f"{refused.value}" and "\n" not in f"{refused.value}"


def test_boxes_of_a_csv_file_are_said_to_be_ignored(photos):
    (photos / "boxes.csv").write_text('path,identity,bbox\na.png,ann,"[1, 2, 3, 4]"\nb.png,bob,\nc.png,cat,nan\n')
    notes = []
    assert len(find_named_images(f"{photos / 'boxes.csv'}", notes)) == 3
    assert len(notes) == 1 and "1 of 3 rows" in notes[0] and "bbox" in notes[0]


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        with pytest.raises(InputError, match=name):
            find_named_images(os.fspath(tmp_path / name), [])


def test_paths_are_shown_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path(f"{tmp_path}/a/1.jpg") == "a/1.jpg"
    assert shown_path("/elsewhere/1.jpg") == "/elsewhere/1.jpg"
