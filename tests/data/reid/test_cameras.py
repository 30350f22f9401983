"""What is read as a camera is said with examples, and a warning says where it is unlikely to be one."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention.data.reid import IdentityList, ReIDData, load_reid
from dual_cross_attention.data.reid.cameras import CameraSource
from tests.helpers import any_says, assert_lines, assert_says

SPLITS = ("train", "query", "gallery")


def write(root: Path, names) -> Path:
    """The same names in every split, unless they have a split of their own."""
    for name in names:
        for split in [""] if name.startswith(SPLITS) else [f"{split}/" for split in SPLITS]:
            (root / f"{split}{name}").parent.mkdir(parents=True, exist_ok=True)
            (root / f"{split}{name}").touch()
    return root


def doubts(data) -> list[str]:
    return [warning for warning in data.warnings if "these may not be cameras" in warning]


def test_real_cameras_are_reported_with_two_examples(tmp_path):
    data = load_reid(
        "folder", write(tmp_path, [f"{i}/{c}_1.jpg" for i in ("ann", "bo") for c in ("door", "hall", "yard")])
    )
    (note,) = data.notes
    assert_says(note, "cameras: 3", "query and gallery", "file name")
    assert note.endswith(": door (ann/door_1.jpg), hall (ann/hall_1.jpg)")
    assert not doubts(data)
    assert load_reid("folder", tmp_path, train=False).notes == data.notes


def test_cameras_of_tables(tmp_path):
    write(tmp_path, [f"{i}/{c}_1.jpg" for i in ("ann", "bo") for c in ("door", "hall")])
    for split in ("query", "gallery"):
        rows = [f"{split}/{i}/{c}_1.jpg,{i},{n}" for i in ("ann", "bo") for n, c in enumerate(("door", "hall"))]
        (tmp_path / f"{split}.csv").write_text("\n".join(["path,identity,camera", *rows]))
    assert_says(load_reid("folder", tmp_path).notes[-1], "column camera", "0 (ann/door_1.jpg)", "1 (ann/hall_1.jpg)")
    (tmp_path / "query.csv").unlink()
    assert_says(load_reid("folder", tmp_path).notes[-1], '"_"', "column camera")


def test_every_image_has_a_camera_of_its_own(tmp_path):
    """Names by time: nothing is left out for its camera, and the metrics would be those of near-duplicates."""
    names = [f"{split}/{i}/{i}{split[0]}{n}_x.jpg" for split in SPLITS for i in ("ann", "bo") for n in range(3)]
    (line,) = doubts(load_reid("folder", write(tmp_path, names)))
    for word in ("12 of 12 images", "no other image has", "anng0 (ann/anng0_x.jpg)", "CAMERA_*.jpg", "query.csv"):
        assert word in line


def test_cameras_that_do_not_recur_across_identities(tmp_path):
    names = [f"{i}/{i}-{side}_{n}.png" for i in ("Amber", "Bella") for side in ("Left", "Right") for n in range(3)]
    (line,) = doubts(load_reid("folder", write(tmp_path, names)))
    for word in (
        "24 of 24 images",
        "without images of another identity",
        "Amber-Left (Amber/Amber-Left_0.png)",
        "CAMERA_*.jpg",
    ):
        assert word in line


def test_a_few_such_cameras_are_none_to_doubt(tmp_path):
    names = [f"{i}/{c}_{n}.jpg" for i in ("ann", "bo") for c in ("door", "hall") for n in range(3)]
    assert not doubts(load_reid("folder", write(tmp_path, [*names, *(f"ann/phone{n}_1.jpg" for n in range(5))])))


def test_names_that_begin_with_the_identity(tmp_path, refused):
    """Amber_Left_Face.png: refused in the user's own words, with what is read as cameras and the remedy."""
    write(
        tmp_path, [f"{i}/{i}_{side}_Face.png" for i in ("Amber", "Bella", "Cleo", "Dora") for side in ("Left", "Right")]
    )
    with refused(
        "none of the 8 queries", "identity Amber, camera Amber", "Amber/Amber_Left_Face.png", "4 cameras are Amber",
        "and 1 more", 'before its first "_"', "CAMERA_*.jpg", "query.csv",
    ):  # fmt: skip
        load_reid("folder", tmp_path)


def test_one_camera_for_all(tmp_path, refused):
    names = [f"{i}/IMG_{n}.jpg" for i in ("Amber", "Bella") for n in range(3)]
    with refused("none of the 6 queries", "IMG (Amber/IMG_0.jpg)", "CAMERA_*.jpg", "column camera"):
        load_reid("folder", write(tmp_path, names))


def test_the_remedy_for_one_camera_works(tmp_path):
    """One camera name in query.csv and another in gallery.csv: every gallery image of the identity is a match."""
    write(tmp_path, [f"{i}/IMG_{n}.jpg" for i in ("Amber", "Bella") for n in range(3)])
    for split in ("query", "gallery"):
        rows = [f"{split}/{i}/IMG_{n}.jpg,{i},{split}" for i in ("Amber", "Bella") for n in range(3)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["path,identity,camera", *rows]))
    data = load_reid("folder", tmp_path)
    assert not any("no match" in warning for warning in data.warnings) and not doubts(data)


@pytest.mark.parametrize(
    ("name", "train", "query", "gallery", "said"),
    [
        ("market1501", ["bounding_box_train/0002_c1s1_1_0.jpg", "bounding_box_train/0003_c1s1_1_0.jpg"],
         "query/0001_c12s1_1_0.jpg", "bounding_box_test/0001_c3s1_1_0.jpg",
         "3 (bounding_box_test/0001_c3s1_1_0.jpg), 12 ("),
        ("dukemtmc", ["bounding_box_train/0002_c1_f1.jpg", "bounding_box_train/0003_c1_f1.jpg"],
         "query/0001_c2_f1.jpg", "bounding_box_test/0001_c31_f1.jpg", "2 (query/0001_c2_f1.jpg), 31 ("),
        ("veri776", ["image_train/0002_c001_1_0.jpg", "image_train/0003_c001_1_0.jpg"],
         "image_query/0001_c001_1_0.jpg", "image_test/0001_c020_1_0.jpg", "1 (image_query/0001_c001_1_0.jpg), 20 ("),
    ],
)  # fmt: skip
def test_cameras_of_releases(tmp_path, refused, name, train, query, gallery, said):
    for file in (*train, query, gallery):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    data = load_reid(name, tmp_path)
    assert said in data.notes[0] and not doubts(data)
    (tmp_path / gallery).rename((tmp_path / gallery).with_name((tmp_path / query).name))
    camera = said.split(" (")[0] if name != "market1501" else "12"
    with refused(name, "none of the 1 queries", f"the only camera is {camera} "):
        load_reid(name, tmp_path)


def test_cameras_of_archives(tmp_path):
    """Archives of another writer: names of identities and cameras as they stand there."""
    rows = {
        "train": [("ann", "x"), ("bo", "x")],
        "query": [("bo", "bo1"), ("cy", "cy1")],
        "gallery": [("bo", "bo2"), ("cy", "cy2")],
    }
    for split, labels in rows.items():
        with tarfile.open(tmp_path / f"{split}-000000.tar", "w") as archive:
            for number, (identity, camera) in enumerate(labels):
                image = io.BytesIO()
                Image.new("RGB", (8, 8)).save(image, "PNG")
                label = json.dumps({"identity": identity, "camera": camera}).encode()
                for name, content in ((f"{number}.png", image.getvalue()), (f"{number}.json", label)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    data = load_reid("shards", tmp_path)
    assert_lines(data.notes, ("cameras: 4", "query and gallery", "KEY.json", "bo1 (0.png), bo2 (0.png)"))
    assert "4 of 4 images" in doubts(data)[0] and "no other image" in doubts(data)[0]
    assert any_says(data.warnings, "1 identities", "both training and test", "'bo'")


def random_data(seed: int) -> tuple[IdentityList, IdentityList]:
    """Query and gallery; depending on the seed, few or many cameras, which belong to one identity or to any."""
    random = np.random.default_rng(seed)
    identities = random.integers(0, 5, 60)
    cameras = random.integers(0, [2, 10, 100][seed % 3], 60)
    if seed % 2:
        cameras = np.where(random.random(60) < 0.7, 100 + 10 * identities + cameras % 3, cameras)
    # The last two images make a query that counts.
    identities, cameras = np.append(identities, [7, 7]), np.append(cameras, [0, 1])
    images = [Path(f"{number}.jpg") for number in range(62)]
    query = [number for number in range(62) if number % 4 == 1]
    gallery = [number for number in range(62) if number not in query]
    return tuple(
        IdentityList([images[i] for i in side], identities[side].tolist(), cameras[side].tolist())
        for side in (query, gallery)
    )


def test_doubts_are_those_of_the_definition():
    """Counted image by image, with sets."""
    source = CameraSource("the numbers given", "give others")
    said = set()
    for seed in range(60):
        query, gallery = random_data(seed)
        seen = [pair for side in (query, gallery) for pair in zip(side.identities, side.cameras, strict=True)]
        own = sum(sum(camera == other for _, other in seen) == 1 for _, camera in seen)
        one = sum(len({identity for identity, other in seen if other == camera}) == 1 for _, camera in seen)
        lines = doubts(ReIDData("name", [], None, query, gallery, camera_source=source))
        if 2 * max(own, one) <= len(seen):
            assert not lines
            said.add("none")
        else:
            count, kind = (own, "no other image has") if 2 * own > len(seen) else (one, "of another identity")
            assert f"{count} of {len(seen)} images" in lines[0] and kind in lines[0]
            said.add(kind)
    assert said == {"none", "no other image has", "of another identity"}


def test_images_are_sorted_once(monkeypatch):
    """At every start, of millions of images of shards; in two dimensions, NumPy takes a second for a million."""
    sorts = []
    unique = np.unique

    def counted(values, *arguments, **options):
        sorts.append(np.shape(values))
        return unique(values, *arguments, **options)

    query, gallery = random_data(1)
    monkeypatch.setattr(np, "unique", counted)
    ReIDData("name", [], None, query, gallery, camera_source=CameraSource("the numbers given", "give others"))
    assert sorted(shape for shape in sorts if np.prod(shape) >= 62) == [(62,)]
