"""What comes out of archives is what went in: pixels, labels, cameras and names, image by image."""

import pickle
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention.data import load_fgvc, load_reid, read_image
from dual_cross_attention.data.shards import discovery as finding
from dual_cross_attention.data.synthetic import birds as fgvc_toy
from dual_cross_attention.data.synthetic import people as reid_toy

SHARED = Path(__file__).parents[4] / "shared" / "data"


def pixels(image) -> bytes:
    return read_image(image).tobytes()


def seen(images, *columns) -> Counter:
    """How often each image comes, by its pixels and numbers."""
    return Counter(zip(map(pixels, images), *columns, strict=True))


def noise(path: Path, random: Random) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (random.randint(5, 20), random.randint(5, 20))
    Image.frombytes("RGB", size, random.randbytes(3 * size[0] * size[1])).save(path)
    return path


@pytest.fixture
def cub(tmp_path) -> Path:
    """CUB's layout: 3 classes, 10 training and 5 test images, two of them in other formats than they say."""
    random, home = Random(0), tmp_path / "CUB_200_2011"
    lines = {"images": [], "image_class_labels": [], "train_test_split": []}
    for number in range(1, 16):
        suffix = "png" if number % 5 == 0 else "jpg"
        path = noise(home / "images" / f"{number % 3}.Bird" / f"{number}.{suffix}", random)
        if number == 7:
            Image.open(path).save(path, "PNG")
        lines["images"].append(f"{number} {path.relative_to(home / 'images')}")
        lines["image_class_labels"].append(f"{number} {number % 3 + 1}")
        lines["train_test_split"].append(f"{number} {int(number % 3 != number % 2)}")
    lines["classes"] = [f"{number + 1} {number:03}.Bird" for number in range(3)]
    for name, content in lines.items():
        (home / f"{name}.txt").write_text("\n".join(content) + "\n")
    return home


@pytest.fixture
def market(tmp_path) -> Path:
    random, home = Random(1), tmp_path / "Market-1501-v15.09.15"
    for folder, people in (("bounding_box_train", (2, 7, 10)), ("query", (3, 5)), ("bounding_box_test", (0, 3, 5))):
        for person in people:
            for camera in (1, 2):
                for take in range(1 if folder == "query" else 3):
                    noise(home / folder / f"{person:04}_c{camera}s1_{take:06}_00.jpg", random)
    return home


def assert_same_classes(ours, theirs) -> None:
    assert ours.classes == theirs.classes
    for split in ("train", "test"):
        our, their = getattr(ours, split), getattr(theirs, split)
        assert seen(our.images, our.labels) == seen(their.images, their.labels)
        assert np.asarray(our.labels).tolist() == list(our.labels)
    assert list(map(pixels, ours.test.images)) == list(map(pixels, theirs.test.images))  # in the same order


def assert_same_people(ours, theirs) -> None:
    assert ours.identities == theirs.identities
    for split in ("train", "query", "gallery"):
        our, their = getattr(ours, split), getattr(theirs, split)
        for column in ("identities", "cameras"):
            assert np.asarray(getattr(our, column)).tolist() == list(getattr(our, column))
        columns = [[pixels(image) for image in each.images] for each in (our, their)]
        assert columns[0] == columns[1]
        assert list(our.identities) == list(their.identities)
        assert list(our.cameras) == list(their.cameras) or split == "train"
        assert len(set(zip(our.cameras, their.cameras, strict=True))) == len(set(their.cameras))


def test_drawn_birds(shard_set, tmp_path, monkeypatch):
    birds = fgvc_toy.draw_toy(4, 2)
    by_name = "dual_cross_attention.tasks.sharding.load_fgvc"
    monkeypatch.setattr(by_name, lambda *given, **more: birds if given[0] == "toy" else load_fgvc(*given, **more))
    lines = shard_set("fgvc", "toy", None, tmp_path)
    assert "40 of train in 1 archive, 20 of val in 1 archive;" in lines[0]
    assert_same_classes(load_fgvc("shards", tmp_path), birds)


def test_drawn_people(shard_set, tmp_path, monkeypatch):
    people = reid_toy.draw_toy_people(True, 1, 1)
    monkeypatch.setattr(
        "dual_cross_attention.tasks.sharding.load_reid",
        lambda *given, **more: people if given[0] == "toy" else load_reid(*given, **more),
    )
    shard_set("reid", "toy", None, tmp_path)
    assert_same_people(load_reid("shards", tmp_path), people)
    assert load_reid("shards", tmp_path, train=False).train is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cub(shard_set, cub, tmp_path, num_workers):
    shard_set("fgvc", "cub", cub, tmp_path / "shards", num_workers=num_workers)
    ours, theirs = load_fgvc("shards", tmp_path / "shards"), load_fgvc("cub", cub)
    assert_same_classes(ours, theirs)
    # The files' own bytes, in random order, under names of their true format.
    originals = Counter(path.read_bytes() for path in theirs.train.images)
    assert Counter(image.open().read() for image in ours.train.images) == originals
    assert list(ours.train.labels) != list(theirs.train.labels)
    for image in ours.train.images:
        assert {"jpg": "JPEG", "png": "PNG"}[image.name.rpartition(".")[2]] == Image.open(image.open()).format
    assert f"{ours.test.images[0]}" == f"{tmp_path}/shards/val-000000.tar/000000.{ours.test.images[0].name[-3:]}"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_market(shard_set, market, tmp_path, num_workers):
    shard_set("reid", "market1501", market, tmp_path / "shards", num_workers=num_workers)
    assert_same_people(load_reid("shards", tmp_path / "shards"), load_reid("market1501", market))


def test_folders(shard_set, images, tmp_path):
    shard_set("fgvc", "folder", images, tmp_path)
    assert_same_classes(load_fgvc("shards", tmp_path), load_fgvc("folder", images))


def test_shards_of_shards(shard_set, classified, tmp_path):
    classified(tmp_path / "others")
    shard_set("fgvc", "shards", tmp_path / "others", tmp_path / "own")
    assert_same_classes(load_fgvc("shards", tmp_path / "own"), load_fgvc("shards", tmp_path / "others"))


def test_pickled_images_are_small_and_equal(shard_set, images, tmp_path):
    """The index goes by its path: a process that is spawned maps the file again."""
    shard_set("fgvc", "folder", images, tmp_path)
    train = load_fgvc("shards", tmp_path).train
    sent = pickle.dumps(train)
    assert len(sent) < 1500
    there = pickle.loads(sent)
    assert list(there.images) == list(train.images) and list(there.labels) == list(train.labels)
    with pytest.raises(IndexError):
        train.images[len(train)]
    assert train.images[-1] == train.images[len(train) - 1]


@pytest.mark.parametrize(
    ("data_root", "archives"),
    [
        ("{}", ["train-000000.tar", "train-000001.tar", "train-000002.tar"]),
        ("{}/train-{{000000..000001}}.tar", ["train-000000.tar", "train-000001.tar"]),
        ("{}/train-00000{{0,2}}.tar", ["train-000000.tar", "train-000002.tar"]),
        ("{}/train-000001.tar", ["train-000001.tar"]),
    ],
)
def test_data_root(classified, tmp_path, data_root, archives):
    classified(tmp_path, train=30, archives=3)
    data = load_fgvc("shards", data_root.format(tmp_path))
    assert sorted({image.archive.name for image in data.train.images}) == archives
    assert len(data.train) == 10 * len(archives) and len(data.test) == 30


@pytest.mark.parametrize("test", ["val", "test"])
def test_names_of_others(classified, tmp_path, test):
    """Test archives are called as those to train on."""
    classified(tmp_path)
    for path in [*tmp_path.iterdir()]:
        path.rename(tmp_path / f"birds-{path.name.replace('val', test)}")
    data = load_fgvc("shards", tmp_path / "birds-train-{000000..000001}.tar")
    assert data.test.images[0].archive.name == f"birds-{test}-000000.tar"


def test_expanding():
    assert finding.expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert finding.expand("{a,b}-{0..1}") == ["a-0", "a-1", "b-0", "b-1"]
    assert finding.expand("plain") == ["plain"]


@pytest.mark.parametrize(
    ("data_root", "words"),
    [
        ("{}/none", ["expected archives of one folder", "it does not exist"]),
        ("{}/none/train-{{0..1}}.tar", ["cannot read the folder", "none", "No such file"]),
        ("{}/train-{{000000..000005}}.tar", ["train-000002.tar", "cannot be found"]),
        ("{}/train-{{0..99999999}}.tar", ["braces like {000000..000127}", "{0..99999999}"]),
        ("{}/train-{{0..99}}{{0..99}}{{0..99}}.tar", ["at most 100,000 archives", "1,000,000"]),
        ("{}/train-{{a..c}}.tar", ["braces like", "{a..c}"]),
        ("{}/{{a,b}}/train.tar", ["of one folder", "several folders"]),
        ("{}/image.jpg", ["expected archives of one folder", "not a folder"]),
        ("{}/train-00000{{0,0}}.tar", ["one twice"]),
    ],
)
def test_data_root_that_cannot_work(classified, tmp_path, refused, write_image, data_root, words):
    classified(tmp_path)
    write_image(tmp_path / "image.jpg")
    with refused("shards: ", *words):
        load_fgvc("shards", data_root.format(tmp_path))
    assert not list(tmp_path.glob("none*"))


def test_missing_splits(classified, tmp_path, refused):
    with refused("expected train-*.tar", tmp_path, "it is empty"):
        load_fgvc("shards", tmp_path)
    classified(tmp_path)
    for path in tmp_path.glob("val-*"):
        path.unlink()
    with refused("val-*.tar", "test-*.tar", "to test on"):
        load_fgvc("shards", tmp_path)
    with refused("expected query-*.tar"):
        load_reid("shards", tmp_path)
    with refused("shards needs data_root", "train-*.tar"):
        load_fgvc("shards", None)


REAL = {"fgvc": ("cub", "CUB_200_2011"), "reid": ("market1501", "Market-1501-v15.09.15")}


@pytest.mark.slow
@pytest.mark.parametrize("task", REAL)
def test_real_images(shard_set, tmp_path, task):
    name, folder = REAL[task]
    if not (SHARED / folder).is_dir():
        pytest.skip("needs the project's real images")
    load = load_fgvc if task == "fgvc" else load_reid
    shard_set(task, name, SHARED / folder, tmp_path, shard_mb=16, num_workers=2)
    ours, theirs = load("shards", tmp_path), load(name, SHARED / folder)
    for split in ("train", "test") if task == "fgvc" else ("train", "query", "gallery"):
        our, their = getattr(ours, split), getattr(theirs, split)
        columns = ("labels",) if task == "fgvc" else ("identities", "cameras")
        mine = Counter(zip((p.open().read() for p in our.images), *(getattr(our, c) for c in columns), strict=True))
        assert mine == Counter(
            zip((p.read_bytes() for p in their.images), *(getattr(their, c) for c in columns), strict=True)
        )
    assert len(list(tmp_path.glob("train-*.tar"))) > 1


def test_unread_archives_are_warned_about(classified, tmp_path, shard_set, make_images):
    folder = classified(tmp_path / "a")
    expected = load_fgvc("shards", folder)
    assert expected.warnings == []
    for name in ("val-000000.tar", "val-000001.tar"):
        shutil.copy(folder / name, folder / name.replace("val", "test"))
    (folder / "train-000002.tar.gz").write_bytes(b"\x1f\x8b")
    data = load_fgvc("shards", folder)
    assert [*data.test.labels] == [*expected.test.labels]
    assert len(data.warnings) == 2
    assert "2 archives of test" in data.warnings[0] and "val-000000.tar" in data.warnings[0]
    assert "1 archives of train" in data.warnings[1] and "train-000002.tar.gz" in data.warnings[1]
    named = load_fgvc("shards", folder / "train-000000.tar")  # the others are left out on purpose
    assert ["of test" in warning for warning in named.warnings] == [True]
    out = tmp_path / "out"
    shard_set("fgvc", "folder", make_images(tmp_path / "pictures"), out)
    shutil.copy(out / "val-000000.tar", out / "test-000000.tar")
    (warning,) = load_fgvc("shards", out).warnings
    assert "1 archives of test" in warning
