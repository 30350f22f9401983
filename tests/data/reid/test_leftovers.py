"""Images in a split's folder that the layout does not take: each layout counts and names them."""

import errno
import os
from pathlib import Path

import pytest

from dual_cross_attention.data.listing import list_images
from dual_cross_attention.data.reid import load_reid
from tests.helpers import any_says, assert_says

# A dataset that can be used, by layout: files, and lists with what is in them.
LAYOUTS = {
    "folder": (
        [
            f"{split}/{name}/{camera}_1.jpg"
            for split in ("train", "query", "gallery")
            for name in "ab"
            for camera in "xy"
        ],
        {},
    ),
    "market1501": (
        [
            *(f"bounding_box_train/000{i}_c{i}s1_000001_00.jpg" for i in (2, 3)),
            "query/0001_c1s1_000001_00.jpg",
            "bounding_box_test/0001_c2s1_000001_00.jpg",
        ],
        {},
    ),
    "dukemtmc": (
        [
            *(f"bounding_box_train/000{i}_c{i}_f0000001.jpg" for i in (2, 3)),
            "query/0001_c1_f0000001.jpg",
            "bounding_box_test/0001_c2_f0000001.jpg",
        ],
        {},
    ),
    "veri776": (
        [
            *(f"image_train/000{i}_c00{i}_00000001_0.jpg" for i in (2, 3)),
            "image_query/0001_c001_00000001_0.jpg",
            "image_test/0001_c002_00000001_0.jpg",
        ],
        {},
    ),
    "msmt17": (
        [
            *(f"train/000{i}/000{i}_000_0{i}_0303noon_0001_0.jpg" for i in (0, 1)),
            "test/0000/0000_000_01_0303noon_0001_0.jpg",
            "test/0000/0000_001_02_0303noon_0001_0.jpg",
        ],
        {
            "list_train.txt": "0000/0000_000_00_0303noon_0001_0.jpg 0\n",
            "list_val.txt": "0001/0001_000_01_0303noon_0001_0.jpg 1\n",
            "list_query.txt": "0000/0000_000_01_0303noon_0001_0.jpg 0\n",
            "list_gallery.txt": "0000/0000_001_02_0303noon_0001_0.jpg\t0\n",
        },
    ),
}


JPEG = b"\xff\xd8\xff\xe0 and so on"


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture(params=[*LAYOUTS])
def layout(request, tmp_path) -> tuple[str, Path]:
    files, lists = LAYOUTS[request.param]
    write(tmp_path, *files)
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    return request.param, tmp_path


def left_out(name: str, root: Path, words: str = "left out,", train: bool = True) -> list[str]:
    return [warning for warning in load_reid(name, root, train=train).warnings if words in warning]


# By layout: the folders of train, query and gallery, and how far down an image has to lie to be too deep.
PLACES = {
    "folder": (("train", "query", "gallery"), "a/session"),
    "market1501": (("bounding_box_train", "query", "bounding_box_test"), "0001"),
    "dukemtmc": (("bounding_box_train", "query", "bounding_box_test"), "0001"),
    "veri776": (("image_train", "image_query", "image_test"), "0001"),
    "msmt17": (("train", "test"), "0000/more"),
}


def test_images_in_subfolders(layout):
    name, root = layout
    assert left_out(name, root) == []
    expected = load_reid(name, root)
    folders, deeper = PLACES[name]
    for folder in folders:
        write(root, f"{folder}/{deeper}/x_1.jpg", f"{folder}/{deeper}/deeper/a_2.PNG", f"{folder}/{deeper}/note.txt")
    lines = left_out(name, root)
    assert len(lines) == len(folders)
    for folder, line in zip(folders, lines, strict=True):
        assert line.startswith(f"{name}: {root / folder}: 2 images are left out, ")
        assert f"{deeper}/deeper/a_2.PNG" in line or f"{deeper}/x_1.jpg" in line
    data = load_reid(name, root)
    assert (data.train, data.query, data.gallery) == (expected.train, expected.query, expected.gallery)
    assert len(left_out(name, root, train=False)) == len(folders) - 1


# Beside images, and not taken: by name or by first bytes. The last two are no images.
UNREAD = ["1.heic", "1.JFIF", "1.cr3", "1.hif"]
BY_BYTES = ["1", "b_0002.v2", "2.jpg_large", "3.jpg~", "4.jpg.1"]
NO_IMAGES = ["README", "note.v2"]


def test_files_that_look_like_images(layout):
    """Re-ID counts the same files as the class folders of fine-grained recognition."""
    name, root = layout
    folder = root / PLACES[name][0][-1] / ("a" if name == "folder" else "")
    write(folder, *UNREAD, *BY_BYTES, *NO_IMAGES)
    for each in BY_BYTES:
        (folder / each).write_bytes(JPEG)
    (line,) = left_out(name, root, "left out that look like images")
    assert line.startswith(f"{name}: {root / PLACES[name][0][-1]}: {len(UNREAD + BY_BYTES)} files are left out")
    for kind in (".heic: 1", ".jfif: 1", ".cr3: 1", ".hif: 1", "no extension: 1"):
        assert kind in line
    listed = list_images(folder)
    assert len(listed.other) == len(UNREAD + BY_BYTES)


def test_hidden_images_are_counted(layout):
    name, root = layout
    folder = PLACES[name][0][-1]
    hidden = [f"{folder}/.thumbs/x_1.jpg", f"{folder}/a/.x_1.jpg", f"{folder}/.x_1.jpg", f"{folder}/__MACOSX/c_1.jpg"]
    write(root, *hidden, f"{folder}/.thumbs/._x_1.jpg", f"{folder}/a/._x_1.jpg", f"{folder}/.DS_Store")
    assert left_out(name, root, "hidden") == []  # as of macOS: none of them is an image by its bytes
    expected = load_reid(name, root)
    for each in hidden:
        (root / each).write_bytes(JPEG)
    (line,) = left_out(name, root, "hidden")
    assert line.startswith(f"{name}: {root / folder}: {len(hidden)} hidden images are left out")
    assert load_reid(name, root).gallery == expected.gallery


def test_a_folder_that_cannot_be_listed_is_named(layout, monkeypatch):
    name, root = layout
    folder, deeper = PLACES[name][0][-1], PLACES[name][1]
    write(root, f"{folder}/{deeper}/x_1.jpg")
    scandir = os.scandir

    def refuse(path):
        if Path(path) == root / folder / deeper:
            raise PermissionError(errno.EACCES, "Permission denied", f"{path}")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (line,) = left_out(name, root, "cannot be listed")
    assert f"{root / folder / deeper}" in line and "Permission denied" in line


def test_identities_that_are_links_to_one_folder(tmp_path):
    """Both are read: that a link is not followed would be wrong."""
    write(tmp_path, *LAYOUTS["folder"][0])
    (tmp_path / "train" / "c").symlink_to(tmp_path / "train" / "a")
    data = load_reid("folder", tmp_path)
    assert data.identities == ["a", "b", "c"]
    assert not any("not followed" in warning for warning in data.warnings)


def test_links_are_followed_once(layout, tmp_path_factory):
    """A folder of an identity that lies elsewhere, and a link to a folder above, which would never end."""
    name, root = layout
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere, "x_1.jpg")
    folder, deeper = PLACES[name][0][-1], PLACES[name][1]
    (root / folder / deeper).parent.mkdir(exist_ok=True)
    (root / folder / deeper).symlink_to(elsewhere)
    (root / folder / "loop").symlink_to(root / folder)
    (line,) = left_out(name, root)
    assert "1 image is left out" in line and f"{deeper}/x_1.jpg" in line


@pytest.mark.parametrize("name", ["folder", "market1501", "dukemtmc", "veri776"])
def test_nothing_but_subfolders_is_refused_with_what_there_is(tmp_path, refused, name):
    files, _ = LAYOUTS[name]
    write(tmp_path, *(f"{Path(file).parent}/more/{Path(file).name}" for file in files))
    first = PLACES[name][0][0]
    with refused(name, tmp_path / first, "left out", "subfolders", "more/"):
        load_reid(name, tmp_path)


def test_images_right_in_a_split_and_in_folders_of_other_layouts(tmp_path):
    write(tmp_path, *LAYOUTS["folder"][0], "query/x_1.jpg", "val/a/x_1.jpg")
    data = load_reid("folder", tmp_path)
    assert any_says(data.warnings, f"folder: {tmp_path / 'query'}: 1 image", "left out", "x_1.jpg")
    assert f"folder: {tmp_path / 'val'} is not read" in str(data.warnings)


def test_a_csv_beside_a_folder_that_it_does_not_list_all_of(tmp_path):
    write(tmp_path, *LAYOUTS["folder"][0])
    (tmp_path / "query.csv").write_text("path,identity,camera\nquery/a/x_1.jpg,a,x\nquery/b/y_1.jpg,b,y\n")
    (line,) = left_out("folder", tmp_path)
    assert_says(line, f"folder: {tmp_path / 'query'}: 2 images", "left out", "query.csv", "a/y_1.jpg")
