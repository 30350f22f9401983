"""Folders and CSV files without cameras: own files, leave-one-out, bounding boxes, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention.data.crops import CroppedFile
from dual_cross_attention.data.fingerprint import fingerprint_split
from dual_cross_attention.data.images import UnreadableImage, read_image
from dual_cross_attention.data.reid import load_reid
from dual_cross_attention.data.reid.own_files import has_other_file, number_files
from tests.helpers import any_says, assert_says, names_of

TRAIN = ["train/x/1.png", "train/x/2.png", "train/y/1.png", "train/y/2.png"]


def write(root: Path, *names: str) -> Path:
    """Images of different bytes."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number * 7 % 256, number, 40)).save(root / name)
    return root


def table(root: Path, split: str, header: str, *rows: str) -> Path:
    (root / f"{split}.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return root


def test_query_and_gallery(tmp_path):
    write(tmp_path, *TRAIN, "query/a/1.png", "query/b/1.png", "gallery/a/2.png", "gallery/b/2.png", "gallery/c/1.png")
    data = load_reid("folder", tmp_path, cameras="none")
    assert names_of(data.query) == ["a/1.png", "b/1.png"] and not data.leave_one_out
    assert (data.query.identities, data.gallery.identities, data.query.cameras) == ([0, 1], [0, 1, 2], None)
    assert len(set(data.test_files.tolist())) == 5
    assert data.warnings == []


def test_a_query_that_is_in_the_gallery_is_its_own_file_only(tmp_path):
    """By links and by CSV: the identity has no other file, so the query has no match."""
    write(tmp_path, *TRAIN, "query/a/1.png", "query/b/1.png", "gallery/b/2.png")
    (tmp_path / "gallery/a").mkdir()
    os.symlink(tmp_path / "query/a/1.png", tmp_path / "gallery/a/linked.png")
    data = load_reid("folder", tmp_path, cameras="none")
    files = dict(zip(names_of(data.query) + names_of(data.gallery), data.test_files.tolist(), strict=True))
    assert files["a/1.png"] == files["a/linked.png"] and len(set(files.values())) == 3
    assert any_says(data.warnings, "1 of 2 queries", "1.png", "no match")
    table(tmp_path, "query", "path,identity", "query/a/1.png,a", "query/b/1.png,b")
    table(tmp_path, "gallery", "path,identity", "./query/a/1.png,a", "gallery/b/2.png,b")
    again = load_reid("folder", tmp_path, cameras="auto")
    assert any_says(again.warnings, "1 of 2 queries", "1.png", "no match")
    assert any_says(again.notes, "cameras: none", "query.csv", "1.png")


def test_byte_identical_copies_are_reported(tmp_path):
    write(tmp_path, *TRAIN, "query/a/1.png", "query/b/1.png", "gallery/a/2.png", "gallery/b/2.png")
    assert not any_says(load_reid("folder", tmp_path, cameras="none").warnings, "copies")
    (tmp_path / "gallery/b/copy.png").write_bytes((tmp_path / "query/b/1.png").read_bytes())
    (tmp_path / "gallery/b/twice.png").write_bytes((tmp_path / "gallery/a/2.png").read_bytes())  # within the gallery
    data = load_reid("folder", tmp_path, cameras="none")
    (line,) = [line for line in data.warnings if "copies" in line]
    assert_says(line, "2 files", "query/b/1.png = gallery/b/copy.png")


def test_leave_one_out(tmp_path):
    write(tmp_path, *TRAIN, "test/a/1.png", "test/a/2.png", "test/b/1.png", "test/b/2.png", "test/b/3.png")
    data = load_reid("folder", tmp_path, cameras="auto")
    assert data.leave_one_out and data.gallery is data.query
    assert names_of(data.query) == ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png"]
    assert [*data.test_images] == data.query.images and len(set(data.test_files.tolist())) == 5
    assert any_says(data.notes, "leave-one-out") and data.warnings == []
    alone = load_reid("folder", tmp_path, train=False, cameras="auto")
    assert alone.query == data.query and alone.train is None


def test_leave_one_out_from_a_table_and_with_cameras(tmp_path):
    write(tmp_path, *TRAIN, *(f"images/{i}.png" for i in range(4)))
    rows = ["images/0.png,a,n", "images/1.png,a,s", "images/2.png,b,n", "images/3.png,b,s"]
    table(tmp_path, "test", "path,identity,camera", *rows)
    data = load_reid("folder", tmp_path, cameras="auto")
    assert data.leave_one_out and data.query.cameras == [0, 1, 0, 1]
    assert any_says(data.notes, "cameras: 2", "column camera", "n (images/0.png)", "s (images/1.png)")
    assert load_reid("folder", tmp_path, cameras="none").query.cameras is None


def test_query_and_gallery_go_before_test(tmp_path):
    write(tmp_path, *TRAIN, "query/a/1.png", "gallery/a/2.png", "test/b/1.png", "test/b/2.png")
    data = load_reid("folder", tmp_path, cameras="none")
    assert not data.leave_one_out and any_says(data.warnings, "test is not read")


def test_identities_with_one_image_are_counted(tmp_path, refused):
    write(tmp_path, *TRAIN, "test/a/1.png", "test/a/2.png", "test/b/1.png", "test/c/1.png")
    data = load_reid("folder", tmp_path, cameras="auto")
    assert any_says(data.warnings, "2 test identities", "one image file", "1.png", "gallery")
    (tmp_path / "test/a/2.png").unlink()
    with refused("none of the 3 queries", "a/1.png", "identity a", "two images"):
        load_reid("folder", tmp_path, cameras="auto")


def test_identities_of_training_and_test_are_reported(tmp_path):
    write(tmp_path, *TRAIN, "test/x/3.png", "test/x/4.png", "test/b/1.png", "test/b/2.png")
    assert any_says(load_reid("folder", tmp_path, cameras="auto").warnings, "1 identities", "training and test", "'x'")


def test_wildlife_datasets_columns(tmp_path):
    """image_id, identity, path, date, orientation, bbox; pandas leaves an empty field where there is no box."""
    write(tmp_path, *(f"images/{i}.png" for i in range(4)))
    header = "image_id,identity,path,date,orientation,bbox"
    table(tmp_path, "train", header, "0,Ann,images/0.png,2020-01-01,left,", '1,Bo,images/1.png,,right,"[1, 2, 3, 4]"')
    rows = ['2,Cy,images/2.png,2020,left,"[0.0, 1.0, 4.0, 5.0]"', '3,Cy,images/3.png,2021,left,"(2, 0, 4, 6)"']
    table(tmp_path, "test", header, *rows, "4,unknown,images/0.png,2021,left,nan")
    data = load_reid("folder", tmp_path, cameras="auto")
    assert data.identities == ["Ann", "Bo"]
    assert data.query.images == [
        CroppedFile(tmp_path / "images/2.png", (0, 1, 4, 5)),
        CroppedFile(tmp_path / "images/3.png", (2, 0, 4, 6)),
        tmp_path / "images/0.png",
    ]
    assert any_says(data.notes, "train.csv", "1 images are cropped", "1 without a box")
    assert any_says(data.notes, "test.csv", "2 images are cropped", "1 without a box")
    assert any_says(data.warnings, "test.csv", "1 images", "'unknown'")
    whole = load_reid("folder", tmp_path, cameras="auto", bbox="ignore")
    assert [*whole.query.images] == [tmp_path / f"images/{i}.png" for i in (2, 3, 0)]
    assert any_says(whole.notes, "test.csv", "bbox is ignored")
    prints = [fingerprint_split(each.query.images, each.query.identities) for each in (data, whole)]
    assert prints[0].images == prints[1].images and prints[0].digest != prints[1].digest


def test_crops_of_one_file_are_different_images_of_one_file(tmp_path, refused):
    write(tmp_path, *TRAIN, "images/0.png", "images/1.png")
    header = "path,identity,bbox"
    rows = ['images/0.png,a,"[0,0,2,2]"', 'images/0.png,b,"[4,0,2,2]"', "images/1.png,a,", 'images/1.png,b,"[1,1,2,2]"']
    table(tmp_path, "test", header, *rows)
    data = load_reid("folder", tmp_path, cameras="auto")
    assert data.test_files.tolist() == [0, 0, 1, 1] and data.warnings == []
    table(tmp_path, "test", header, *rows, rows[0])
    with refused("test.csv, line 6", "images/0.png [0, 0, 2, 2]", "line 2"):
        load_reid("folder", tmp_path, cameras="auto")


def test_pixels_of_a_crop(tmp_path):
    """In pixels of the upright image, at full size; what lies outside is cut off."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side in the file
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(pixels, 3)
    for box, (rows, columns) in {
        (5.0, 10.0, 20.0, 30.0): (slice(10, 40), slice(5, 25)),
        (-4.0, 50.0, 10.0, 99.0): (slice(50, 60), slice(0, 6)),
    }.items():
        crop = read_image(CroppedFile(tmp_path / "a.png", box), (4, 4))
        assert np.array_equal(np.asarray(crop), upright[rows, columns])
    with pytest.raises(UnreadableImage, match="bbox"):
        read_image(CroppedFile(tmp_path / "a.png", (40, 0, 5, 5)))


@pytest.mark.parametrize(
    "box",
    ["[1,2,3]", "[1,2,3,4,5]", "[1,2,0,4]", "[1,2,3,-4]", "[nan,2,3,4]", "[1,2,inf,4]", "a b c d", "[", "[1e12,2,3,4]"],
)
def test_bad_boxes(tmp_path, refused, box):
    write(tmp_path, *TRAIN, "images/0.png")
    table(tmp_path, "test", "path,identity,bbox", f'images/0.png,a,"{box}"')
    with refused("test.csv, line 2", "bbox", "x, y, width and height"):
        load_reid("folder", tmp_path, cameras="auto")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,identity,camera\nimages/0.png,a,n\nimages/1.png,a,\n", ["line 3", "camera", "1 of 2", "--cameras none"]),
        ("path,camera\nimages/0.png,n\n", ["line 1", "no identity"]),
        ("path,identity,bbox,bbox\nimages/0.png,a,,\n", ["line 1", "several bbox"]),
        ("path,identity\n../0.png,a\n", ["line 2", "inside of"]),
        ("path,identity\nC:\\images\\0.png,a\n", ["line 2", "Windows"]),
        ("path,identity\nimages/7.png,a\n", ["line 2", "images/7.png does not exist"]),
        ('path,identity,bbox\nimages/7.png,a,"[1,1,2,2]"\n', ["line 2", "images/7.png does not exist"]),
        ("path,identity\nimages/0.png,a\n./images/0.png,b\n", ["line 3", "images/0.png", "line 2"]),
        ("path,identity\n", ["lists none"]),
    ],
)
def test_bad_tables(tmp_path, refused, text, words):
    write(tmp_path, *TRAIN, "images/0.png", "images/1.png")
    (tmp_path / "test.csv").write_text(text)
    with refused("folder", tmp_path / "test.csv", *words):
        load_reid("folder", tmp_path, cameras="auto")


def test_neither_test_nor_query(tmp_path, refused):
    write(tmp_path, *TRAIN)
    with refused("folder", "test/", "query/", tmp_path, "train/"):
        load_reid("folder", tmp_path, cameras="none")
    write(tmp_path, "gallery/a/1.png", "test/a/1.png")
    with refused("folder", "query/", "gallery/"):
        load_reid("folder", tmp_path, cameras="none")


def test_which_queries_have_another_file_is_as_in_a_loop():
    random = np.random.default_rng(0)
    for _ in range(50):
        sizes = random.integers(1, 12, 2)
        ids, files = ([random.integers(0, 4, size) for size in sizes] for _ in range(2))
        expected = [
            any(ids[1][g] == ids[0][q] and files[1][g] != files[0][q] for g in range(sizes[1])) for q in range(sizes[0])
        ]
        assert has_other_file(*ids, *files).tolist() == expected


def test_numbers_of_files(tmp_path):
    write(tmp_path, "a/1.png", "a/2.png")
    os.symlink(tmp_path / "a", tmp_path / "b")
    os.symlink("1.png", tmp_path / "a/3.png")
    paths = [tmp_path / name for name in ("a/1.png", "a/2.png", "b/1.png", "a/3.png", "b/3.png")]
    images = [*paths, CroppedFile(paths[1], (0, 0, 1, 1)), Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2))]
    assert number_files(images).tolist() == [0, 1, 0, 0, 0, 1, 2, 3]
