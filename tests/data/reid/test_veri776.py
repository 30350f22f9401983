"""VeRi-776 from a small tree, with and without name lists and XML files, and broken in every way."""

from pathlib import Path

import pytest

from dual_cross_attention.data.reid import load_reid
from tests.helpers import any_says, assert_lines, assert_says

PAGE = "https://github.com/JDAI-CV/VeRidataset"
SPLITS = {
    "train": ["0001_c001_00016450_0.jpg", "0001_c012_00016550_0.jpg", "0004_c020_00001000_1.jpg"],
    "query": ["0002_c002_00030600_0.jpg"],
    "test": ["0002_c002_00030600_0.jpg", "0002_c003_00030700_0.jpg", "0005_c001_00030700_0.jpg"],
}


def xml(names: list[str], encoding: str = "gb2312", plate: str = "京A") -> bytes:
    items = "".join(
        f'<Item imageName="{name}" vehicleID="{name[:4]}" cameraID="{name[5:9]}" plate="{plate}"/>\n' for name in names
    )
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?>\n<Images Version="1.0"><Items number="3">{items}</Items></Images>'
    )
    return text.encode("gb18030" if encoding == "gb2312" else encoding)


@pytest.fixture
def bare(tmp_path) -> Path:
    root = tmp_path / "VeRi"
    for split, names in SPLITS.items():
        (root / f"image_{split}").mkdir(parents=True)
        for name in names:
            (root / f"image_{split}" / name).touch()
    return root


@pytest.fixture
def veri(bare) -> Path:
    """In full: the lists are in another order than the folders, which hold an image more."""
    for split, names in SPLITS.items():
        (bare / f"name_{split}.txt").write_text("".join(f"{name}\r\n" for name in reversed(names)))
        (bare / f"image_{split}" / "0009_c009_00000000_0.jpg").touch()
    for split in ("train", "test"):
        (bare / f"{split}_label.xml").write_bytes(xml(SPLITS[split]))
    return bare


def test_folders_alone(bare):
    data = load_reid("veri776", bare)
    assert (data.name, data.identities) == ("veri776", ["0001", "0004"])
    assert data.train.images == [bare / "image_train" / name for name in SPLITS["train"]]
    assert (data.train.identities, data.train.cameras) == ([0, 0, 1], [1, 12, 20])
    assert data.query.images == [bare / "image_query" / name for name in SPLITS["query"]]
    assert (data.query.identities, data.query.cameras) == ([2], [2])
    assert data.gallery.images == [bare / "image_test" / name for name in SPLITS["test"]]
    assert (data.gallery.identities, data.gallery.cameras) == ([2, 2, 5], [2, 3, 1])
    assert_lines(
        data.warnings,
        ("veri776", "3 of 37,778 training images", "(2 of 576 identities)", "37,775 are missing"),
        ("veri776", "1 of 1,678 query images", "(1 of 200 identities)", "1,677 are missing"),
        ("veri776", "3 of 11,579 gallery images", "(2 of 200 identities)", "11,576 are missing"),
    )


def test_lists_say_which_images_and_in_which_order(veri):
    data = load_reid("veri776", veri)
    assert data.train.images == [veri / "image_train" / name for name in reversed(SPLITS["train"])]
    assert (data.train.identities, data.train.cameras) == ([1, 0, 0], [20, 12, 1])
    assert (data.gallery.identities, data.gallery.cameras) == ([5, 2, 2], [1, 3, 2])
    assert_lines(
        [warning for warning in data.warnings if "0009_c009_00000000_0.jpg" in warning],
        *(("veri776", veri / f"image_{split}", "1 image", "left out", f"name_{split}.txt") for split in SPLITS),
    )
    assert len(data.warnings) == 6
    assert load_reid("veri776", veri.parent) == data


@pytest.mark.parametrize("encoding", ["gb2312", "GB2312", "gbk", "utf-8"])
def test_xml_names_what_file_names_do_not(veri, encoding):
    """Chinese plates in the declared encoding, 镕 among them, which gb2312 itself has not."""
    (veri / "image_test" / "unnamed.jpg").touch()
    (veri / "name_test.txt").write_text("\n".join([*SPLITS["test"], "unnamed.jpg"]))
    text = xml(SPLITS["test"], encoding.lower(), "京镕").replace(b"gb2312", encoding.encode())
    item = b'<Item imageName="unnamed.jpg" vehicleID="0005" cameraID="c017"/></Items>'
    (veri / "test_label.xml").write_bytes(text.replace(b"</Items>", item))
    data = load_reid("veri776", veri)
    assert (data.gallery.identities, data.gallery.cameras) == ([2, 2, 5, 5], [2, 3, 1, 17])


def test_xml_without_declaration_or_with_a_byte_order_mark(veri):
    expected = load_reid("veri776", veri)
    plain = xml(SPLITS["test"], "utf-8")
    for text in (plain.split(b"\n", 1)[1], b"\xef\xbb\xbf" + plain):
        (veri / "test_label.xml").write_bytes(text)
        assert load_reid("veri776", veri) == expected


@pytest.mark.parametrize(("key", "value"), [("vehicleID", "0003"), ("cameraID", "c004")])
def test_xml_that_contradicts_a_name(veri, refused, key, value):
    name = "0002_c003_00030700_0.jpg"
    old = {"vehicleID": "0002", "cameraID": "c003"}
    text = xml(SPLITS["test"]).decode("gb18030")
    item = f'imageName="{name}" vehicleID="0002" cameraID="c003"'
    assert item in text
    changed = item.replace(f'{key}="{old[key]}"', f'{key}="{value}"')
    (veri / "test_label.xml").write_bytes(text.replace(item, changed).encode("gb18030"))
    with refused("veri776", veri / "test_label.xml", name, value.lstrip("c")):
        load_reid("veri776", veri)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"<Items><Item", ["as XML"]),
        (b"\xff\xff", ["as XML"]),
        (b'<?xml version="1.0" encoding="klingon"?><Items/>', ["as XML", "klingon"]),
        (b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><Items>&a;</Items>', ["<!DOCTYPE"]),
        (b'<Items><Item imageName="a.jpg" vehicleID="0001"/></Items>', ["cameraID=", "a.jpg"]),
        (b'<Items><Item imageName="a.jpg" vehicleID="x" cameraID="c001"/></Items>', ["vehicleID=", "a.jpg"]),
        (b'<Items><Item vehicleID="0001" cameraID="c001"/></Items>', ["imageName="]),
    ],
)
def test_bad_xml(veri, refused, text, words):
    (veri / "train_label.xml").write_bytes(text)
    with refused("veri776", veri / "train_label.xml", *words):
        load_reid("veri776", veri)
    assert len(load_reid("veri776", veri, train=False).gallery) == 3


def test_listed_images_that_are_not_there(veri, refused):
    (veri / "image_test" / SPLITS["test"][2]).unlink()
    data = load_reid("veri776", veri)
    assert data.gallery.identities == [2, 2]
    gone = veri / "image_test" / SPLITS["test"][2]
    assert any_says(data.warnings, "veri776: 1 of the 3 images", veri / "name_test.txt", "left out", gone)
    (veri / "image_query" / SPLITS["query"][0]).unlink()
    with refused("veri776", "none of the 1", veri / "name_query.txt", SPLITS["query"][0], PAGE):
        load_reid("veri776", veri)


def test_empty_list(veri, refused):
    (veri / "name_query.txt").write_text("\n")
    with refused("veri776", veri / "name_query.txt", "lists none", PAGE):
        load_reid("veri776", veri)


def test_other_names(bare, refused):
    expected = load_reid("veri776", bare)
    (bare / "image_query" / "car.jpg").touch()
    data = load_reid("veri776", bare)
    assert (data.query, data.warnings[1:]) == (expected.query, expected.warnings)
    assert_says(data.warnings[0], f"veri776: {bare / 'image_query'}: 1 of 2 images", "left out", "car.jpg")
    (bare / "image_query" / SPLITS["query"][0]).unlink()
    with refused("veri776", bare / "image_query", "none of the 1", "0001_c001_00016450_0.jpg", "car.jpg"):
        load_reid("veri776", bare)


def test_without_training_images(bare, refused):
    expected = load_reid("veri776", bare)
    (bare / "image_train").rename(bare / "elsewhere")
    data = load_reid("veri776", bare, train=False)
    assert (data.train, data.identities, data.query, data.gallery) == (None, [], expected.query, expected.gallery)
    with refused("veri776", bare / "image_train", "does not exist", PAGE):
        load_reid("veri776", bare)


@pytest.mark.parametrize("split", [*SPLITS])
def test_empty_folder(bare, refused, split):
    for file in (bare / f"image_{split}").iterdir():
        file.unlink()
    with refused("veri776", bare / f"image_{split}", "it is empty", PAGE):
        load_reid("veri776", bare)


def test_another_folder(tmp_path, refused):
    with refused("veri776", "VeRi/ with image_train/", tmp_path, "it is empty", PAGE):
        load_reid("veri776", tmp_path)
