"""Names composed (NFC) here and decomposed (NFD) there are the same: classes, identities, cameras, files."""

import json
import os
from pathlib import Path

import pytest

from dual_cross_attention.data import load_fgvc, load_reid
from dual_cross_attention.data.names import composed, composed_order, same_names
from dual_cross_attention.errors import InputError
from dual_cross_attention.untrusted_files import inside
from tests.data.test_data_roots import SMALL, files, write_archive
from tests.test_hostile_files import make_aircraft, make_cub

NFC, NFD = "caf\u00e9", "cafe\u0301"
BOTH = pytest.mark.parametrize(("one", "other"), [(NFC, NFD), (NFD, NFC)], ids=["NFC first", "NFD first"])


def test_names():
    assert composed(NFD) == composed(NFC) == NFC and composed("\udcff") == "\udcff"
    assert same_names([NFC, "a"], [NFD, "a"])
    assert not same_names([NFC, "a"], ["a", NFD]) and not same_names([NFC], [NFC, "a"])
    # As the spellings are sorted: decomposed before "cafz", composed behind it.
    assert composed_order([NFD, "cafz"]) == [NFC, "cafz"]
    assert composed_order([NFC, "cafz"]) == ["cafz", NFC]
    assert composed_order([NFC, NFD, "cafz", NFC]) == [NFC, "cafz"]


@BOTH
def test_lists_of_cub(tmp_path, one, other):
    folder = make_cub(tmp_path)
    expected = load_fgvc("cub", folder)
    (folder / "images/001.A").rename(folder / "images" / one)
    (folder / "images" / one / "a.jpg").rename(folder / "images" / one / f"{one}.jpg")
    text = (folder / "images.txt").read_text().replace("001.A/a.jpg", f"001.A/{other}.jpg").replace("001.A", other)
    (folder / "images.txt").write_text(text)
    (folder / "classes.txt").write_text((folder / "classes.txt").read_text().replace("001.A", other))
    data = load_fgvc("cub", folder)
    assert data.classes == [NFC, "002.B"]
    assert (data.train.labels, data.test.labels) == (expected.train.labels, expected.test.labels)
    assert all(path.is_file() for path in (*data.train.images, *data.test.images))
    assert data.warnings == []


@BOTH
def test_lists_of_aircraft(tmp_path, one, other):
    folder = make_aircraft(tmp_path)
    (folder / "variants.txt").write_text(f"{one}\nB 2\n")
    for split in ("trainval", "test"):
        path = folder / f"images_variant_{split}.txt"
        path.write_text(path.read_text().replace("A1", other))
    data = load_fgvc("aircraft", folder.parent)
    assert (data.classes, data.train.labels) == ([NFC, "B 2"], [0, 1])
    (folder / "variants.txt").write_text(f"{one}\n{other}\nB 2\n")  # the same variant twice
    with pytest.raises(InputError, match="line 2"):
        load_fgvc("aircraft", folder.parent)


@BOTH
def test_folders_of_identities(tmp_path, one, other):
    plain = ["query/a/x_1.jpg", "gallery/a/y_1.jpg", "train/a/x_1.jpg", "train/b/x_1.jpg"]
    files(tmp_path / "mine", *plain, f"query/{one}/{one}_1.jpg", f"gallery/{other}/{other}_1.jpg")
    files(tmp_path / "mine", f"gallery/{other}/y_2.jpg", f"train/{one}/x_1.jpg", f"train/{other}/y_1.jpg")
    data = load_reid("folder", tmp_path / "mine")
    assert data.identities == ["a", "b", NFC]
    assert data.train.identities == [0, 1, 2, 2]
    assert data.query.identities == [0, 1]
    assert sorted(data.gallery.identities) == [0, 1, 1]
    # Cameras are café, x, y: the query's own camera is the same as one of the gallery's.
    assert data.query.cameras == [1, 0] and sorted(data.gallery.cameras) == [0, 2, 2]


@BOTH
def test_csv_files(tmp_path, one, other):
    for split, person in (("train", one), ("query", one), ("gallery", other)):
        rows = ["path,identity,camera"]
        for number, name in enumerate((person, "b")):
            files(tmp_path, f"{split}/{one}{number}.jpg")
            rows.append(f"{split}/{other}{number}.jpg,{name},{split}{person}")
        (tmp_path / f"{split}.csv").write_text("\n".join(rows), encoding="utf-8")
    data = load_reid("folder", tmp_path)
    assert sorted(data.identities) == ["b", NFC]
    assert data.query.identities == data.gallery.identities
    for split in (data.train, data.query, data.gallery):
        assert all(path.is_file() for path in split.images)


def write_archives(folder: Path, task: str, labels: dict[str, list[str]]) -> Path:
    for split, names in labels.items():
        members = []
        for number, name in enumerate(names):
            said = {"label": name} if task == "fgvc" else {"identity": name, "camera": f"{split}{name}"}
            members += [(f"{number}.jpg", SMALL.getvalue()), (f"{number}.json", json.dumps(said).encode())]
        write_archive(folder / f"{split}-000000.tar", members)
    return folder


@BOTH
def test_archives(tmp_path, one, other):
    root = write_archives(tmp_path / "f", "fgvc", {"train": [one, "b", other], "val": ["b", other]})
    data = load_fgvc("shards", root)
    assert data.classes == ["b", NFC]
    assert ([*data.train.labels], [*data.test.labels]) == ([1, 0, 1], [0, 1])
    people = {"train": [one, "b"], "query": [one, "b"], "gallery": ["b", other]}
    data = load_reid("shards", write_archives(tmp_path / "r", "reid", people))
    assert (data.identities, [*data.query.identities], [*data.gallery.identities]) == (["b", NFC], [1, 0], [0, 1])
    people["train"] = [one, "b", other]
    with pytest.raises(InputError, match="two spellings"):
        load_reid("shards", write_archives(tmp_path / "twice", "reid", people))


def test_a_folder_that_has_both_spellings_gives_each_its_own(tmp_path):
    files(tmp_path / "images", f"{NFC}.jpg", f"{NFD}.jpg")
    if len(os.listdir(tmp_path / "images")) < 2:
        pytest.skip("the file system takes them for one")
    for name in (NFC, NFD):
        assert inside(tmp_path / "images", f"{name}.jpg", "a list").name == f"{name}.jpg"


@pytest.mark.parametrize("name", ["../caf\u00e9.jpg", "/etc/caf\u00e9", "caf\u00e9/../../x"])
def test_names_that_lead_out_are_refused_in_any_spelling(tmp_path, name):
    with pytest.raises(InputError, match="inside of"):
        inside(tmp_path, name, "a list")
