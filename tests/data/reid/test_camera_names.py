"""Whether file names have cameras: several naming schemes, and what is said about each."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from dual_cross_attention.data.reid import load_reid
from tests.helpers import assert_says

PEOPLE = ("Amber", "Bella", "Cleo")


def write(root: Path, names: Iterable[str], splits=("query", "gallery")) -> Path:
    """The same names in every split, in the folder of an identity each, beside two training identities."""
    names = [f"{split}/{name}" for split in splits for name in names]
    for name in [*names, "train/x/door_1.jpg", "train/y/door_1.jpg"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def note(data) -> str:
    (line,) = [line for line in data.notes if line.startswith("cameras: ")]
    return line


def cameras_by_name(data, name_of) -> bool:
    """Whether equal names of cameras have equal numbers, and different ones different numbers."""
    pairs = {
        (name_of(image), number)
        for side in (data.query, data.gallery)
        for image, number in zip(side.images, side.cameras, strict=True)
    }
    return len(pairs) == len({name for name, _ in pairs}) == len({number for _, number in pairs})


@pytest.mark.parametrize(
    ("names", "name_of", "words"),
    [
        (
            [f"{i}/{c}_{n}.jpg" for i in PEOPLE for c in ("door", "hall") for n in range(2)],
            lambda path: path.name.split("_")[0],
            ["cameras: 2", "door (Amber/door_0.jpg)", "hall (Amber/hall_0.jpg)"],
        ),
        (
            [f"{i}/{c}_{n:04}.jpg" for i in PEOPLE for c in ("c01", "c02") for n in range(2)],
            lambda path: path.name.split("_")[0],
            ["cameras: 2", "c01 (Amber/c01_0000.jpg)", "c02 ("],
        ),
        (  # Market-1501
            [f"{i:04}/{i:04}_c{c}s{c + 2}_00{n}051_00.jpg" for i in (2, 7, 9) for c in (1, 3) for n in range(2)],
            lambda path: path.name.split("_")[1][1],
            ["cameras: 2", '"_c"', "1 (0002/0002_c1s3_000051_00.jpg)", "3 ("],
        ),
        (  # DukeMTMC-reID
            [f"{i:04}/{i:04}_c{c}_f00{n}6182.jpg" for i in (2, 7, 9) for c in (1, 2) for n in range(2)],
            lambda path: path.name.split("_")[1],
            ["cameras: 2", '"_c"', "1 (0002/0002_c1_f0006182.jpg)"],
        ),
    ],
)
def test_auto_reads_cameras_that_recur_across_identities(tmp_path, names, name_of, words):
    data = load_reid("folder", write(tmp_path, names), cameras="auto")
    assert_says(note(data), *words, "auto", "recur")
    assert data.test_files is None and cameras_by_name(data, name_of)
    assert not any("these may not be cameras" in line for line in data.warnings)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (  # wildlife: the name of the individual
            [f"{i}/{i}_{side}_Face.png" for i in PEOPLE for side in ("Left", "Right")],
            ["one identity", "Amber (Amber/Amber_Left_Face.png)", "Bella (Bella/Bella_Left_Face.png)"],
        ),
        ([f"{i}/IMG_{n}.jpg" for i in PEOPLE for n in range(2)], ["the same", "IMG (Amber/IMG_0.jpg)"]),
        ([f"{i}/{n}.jpg" for i in PEOPLE for n in range(2)], ["lack", "Amber/0.jpg and Amber/1.jpg"]),
        (
            [f"{i}/2021{i[0]}{n}_x.jpg" for i in PEOPLE for n in range(2)],
            ["one identity", "2021A0 (Amber/2021A0_x.jpg)"],
        ),
        (  # recurring, but each identity has one
            ["Amber/door_1.jpg", "Bella/door_1.jpg", "Cleo/hall_1.jpg", "Dora/hall_1.jpg"],
            ["no query", "door (Amber/door_1.jpg)", "hall (Cleo/hall_1.jpg)"],
        ),
    ],
)
def test_auto_reads_no_cameras_from_other_names(tmp_path, names, words):
    data = load_reid("folder", write(tmp_path, names), cameras="auto")
    assert_says(note(data), "none", "--cameras auto", *words, "--cameras name")
    assert data.query.cameras is data.gallery.cameras is data.train.cameras is None
    assert len(data.query) == len(data.gallery) == len(names)  # no image is left out for its name


def test_none_ignores_cameras_and_says_so(tmp_path):
    names = [f"{i}/{c}_1.jpg" for i in PEOPLE for c in ("door", "hall")]
    data = load_reid("folder", write(tmp_path, names), cameras="none")
    assert_says(note(data), "none", "--cameras none")
    assert data.query.cameras is data.train.cameras is None


def test_name_is_as_before_settings_had_cameras(tmp_path, refused):
    """What runs of format 1 mean."""
    names = [f"{i}/{i}_{side}_Face.png" for i in PEOPLE for side in ("Left", "Right")]
    write(tmp_path, names)
    with refused("none of the 6 queries", "identity Amber, camera Amber", "--cameras none"):
        load_reid("folder", tmp_path, cameras="name")
    with refused("camera Amber"):
        load_reid("folder", tmp_path)


def test_the_training_images_do_not_decide(tmp_path):
    """Evaluation, which does not read them, decides as training does."""
    names = [f"{i}/{c}_1.jpg" for i in PEOPLE for c in ("door", "hall")]
    write(tmp_path, names)
    for number in range(30):
        (tmp_path / f"train/x/x{number}.jpg").touch()
    data = load_reid("folder", tmp_path, cameras="auto")
    assert note(data) == note(load_reid("folder", tmp_path, train=False, cameras="auto"))
    assert len(data.train) == 32  # images without a camera are trained on


def test_cameras_of_other_datasets_cannot_be_ignored(tmp_path, refused):
    for name, root in (("toy", None), ("market1501", tmp_path)):
        with refused("--cameras none", "--dataset folder", name):
            load_reid(name, root, cameras="none")
    assert load_reid("toy", None, train=False, cameras="auto").query.cameras is not None
