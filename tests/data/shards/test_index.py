"""The index is made once, is that of its archives, and is trusted no more than they are."""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dual_cross_attention.data import ImageDataset, load_fgvc, load_reid, read_image, test_transform
from dual_cross_attention.data.shards import index as index_module
from dual_cross_attention.data.shards.index import Index, index_of
from tests.helpers import assert_says

ROOT = Path(__file__).parents[3]


@pytest.fixture
def made(monkeypatch) -> list[Path]:
    """Fills with the indices that are made."""
    paths = []
    original = index_module.make_index

    def record(archives, task, split, path):
        paths.append(path)
        original(archives, task, split, path)

    monkeypatch.setattr(index_module, "make_index", record)
    return paths


def index_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.index"))


def test_it_is_made_once_and_again_when_archives_change(classified, tmp_path, made, jpeg, write_archive):
    classified(tmp_path)
    first = load_fgvc("shards", tmp_path)
    assert [path.name.split("-")[0] for path in made] == ["train", "val"]
    load_fgvc("shards", tmp_path)
    assert len(made) == 2
    # As long as before, and written anew with other labels: the time tells.
    archive = tmp_path / "train-000000.tar"
    before = archive.stat()
    labels = list(first.train.labels)
    write_archive(
        archive,
        {f"{n:04}.{kind}": jpeg(n) if kind == "jpg" else b"2" for n in range(0, 12, 2) for kind in ("jpg", "cls")},
    )
    assert archive.stat().st_size == before.st_size
    os.utime(archive, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    second = load_fgvc("shards", tmp_path)
    assert len(made) == 3 and list(second.train.labels) == [2] * 6 + labels[6:]
    archive.rename(tmp_path / "gone")
    assert len(load_fgvc("shards", tmp_path).train) == 6  # of DIR, all that are there
    assert len(made) == 4
    assert not list(tmp_path.glob("*.tmp"))


def test_a_missing_archive_is_an_error(shard_set, images, tmp_path, refused):
    """`dcal shard` has written down which there are, so DIR is not all that is left."""
    shard_set("fgvc", "folder", images, tmp_path)
    (tmp_path / "train-000000.tar").rename(tmp_path / "elsewhere")
    for root in (tmp_path, tmp_path / "train-000000.tar"):
        with refused(tmp_path / "train-000000.tar"):
            load_fgvc("shards", root)


def test_copied_archives_keep_their_index_if_times_are_kept(classified, tmp_path, made):
    classified(tmp_path / "one")
    load_fgvc("shards", tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert load_fgvc("shards", tmp_path / "two").train.images[0].archive == tmp_path / "two" / "train-000000.tar"
    assert len(made) == 2


def damage_about(path: Path, **changes: object) -> None:
    raw = path.read_bytes()
    line, _, rows = raw.partition(b"\n")
    about = json.loads(line) | changes
    path.write_bytes(json.dumps({k: v for k, v in about.items() if v is not ...}).encode() + b"\n" + rows)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "no JSON": lambda path: path.write_bytes(b"{" * 100 + path.read_bytes()),
    "deep JSON": lambda path: path.write_bytes(b"[" * 200_000),
    "other version": lambda path: damage_about(path, **{"dcal index": 0}),
    "no archives": lambda path: damage_about(path, archives=...),
    "archives elsewhere": lambda path: damage_about(path, archives={"../../etc/passwd": [1, 1]}),
    "no list": lambda path: damage_about(path, labels={"a": 1}),
    "mixed labels": lambda path: damage_about(path, labels=[0, "1", 2]),
    "labels in disorder": lambda path: damage_about(path, labels=[2, 1, 0]),
    "huge label": lambda path: damage_about(path, labels=[0, 1, 2**70]),
    "counts": lambda path: damage_about(path, counts=[1, 2]),
    "wrong sum": lambda path: damage_about(path, counts=[1, 2, 3]),
    "negative": lambda path: damage_about(path, pictures=-1),
    "huge": lambda path: damage_about(path, pictures=2**39, counts=[2**39, 0, 0]),
    "long names": lambda path: damage_about(path, name_bytes=2**30),
    "text for a number": lambda path: damage_about(path, name_bytes="8"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_index_is_made_again(classified, tmp_path, made, damage):
    classified(tmp_path)
    expected = list(load_fgvc("shards", tmp_path).train.images)
    (path,) = tmp_path.glob("train-*.index")
    damage(path)
    assert list(load_fgvc("shards", tmp_path).train.images) == expected
    assert len(made) >= 3


def test_rows_that_point_nowhere(classified, tmp_path, refused):
    """An index that looks whole, of a stranger: what is beyond its lists is told, not taken."""
    classified(tmp_path)
    load_fgvc("shards", tmp_path)
    (path,) = tmp_path.glob("train-*.index")
    index = Index(path, tmp_path)
    start = path.stat().st_size - index.rows.nbytes
    rows = np.array(index.rows)
    rows[0]["archive"], rows[1]["label"] = 7, 3
    path.write_bytes(path.read_bytes()[:start] + rows.tobytes())
    train = load_fgvc("shards", tmp_path).train
    for read in (lambda: train.images[0], lambda: train.labels[1], lambda: np.asarray(train.labels)):
        with refused(path, "is damaged: remove it"):
            read()
    assert read_image(train.images[2]).size == (12, 10)


def test_a_folder_that_cannot_be_written(classified, tmp_path, monkeypatch):
    """The index is kept elsewhere as long as it is needed, with a warning, and gone after."""
    classified(tmp_path / "shards")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", f"{tmp_path / 'tmp'}")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index_module, "FileLock", refuse)
    data = load_fgvc("shards", tmp_path / "shards")
    assert len(data.warnings) == 2 and not index_files(tmp_path / "shards")
    assert_says(data.warnings[0], "index of train", "Permission denied")
    assert [read_image(image).size for image in data.train.images] == [(12, 10)] * 12
    assert len(list((tmp_path / "tmp").iterdir())) == 2
    del data
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="becomes another user")
def test_a_folder_of_another_user(classified, tmp_path):
    classified(tmp_path)
    for path in (tmp_path, *tmp_path.parents):
        if path.name.startswith(("pytest", "popen")) or path == tmp_path:
            path.chmod(0o755)
    os.seteuid(65534)
    try:
        data = load_fgvc("shards", tmp_path)
    finally:
        os.seteuid(0)
    assert len(data.warnings) == 2 and len(data.train) == 12 and not index_files(tmp_path)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_it(classified, tmp_path, method):
    classified(tmp_path)
    train = load_fgvc("shards", tmp_path).train
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(read_size, train.images) == [(12, 10)] * 12
        transform = test_transform((8, 8), (8, 8), (0.5,) * 3, (0.5,) * 3)
        dataset = ImageDataset(train, transform, training=True)
        assert pool.apply(label_of, (dataset, 5)) == train.labels[5]


def read_size(image) -> tuple[int, int]:
    return read_image(image).size


def label_of(dataset: ImageDataset, number: int) -> int:
    return dataset[number]["label"]


def test_one_of_several_processes_makes_it(classified, tmp_path):
    classified(tmp_path, train=400)
    code = f"""
import logging, sys
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
from dual_cross_attention.data import load_fgvc
data = load_fgvc("shards", {str(tmp_path)!r})
assert len(data.train) == 400 and not data.warnings, data.warnings
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert all(process.returncode == 0 for process in started)
    assert "".join(outputs).count("reading the headers") == 2  # of train and of val, once


def test_identities_lie_next_to_each_other_wherever_they_are(tmp_path, write_archive, jpeg):
    random = np.random.default_rng(0)
    said = [(int(random.integers(0, 5)), int(random.integers(1, 4))) for _ in range(60)]
    for archive in range(3):
        members = {}
        for number in range(archive, 60, 3):
            identity, camera = said[number]
            content = {"identity": f"person {identity}", "camera": f"cam{camera}"}
            members |= {f"{number}.jpg": jpeg(number), f"{number}.json": json.dumps(content).encode()}
        for split in ("train", "query", "gallery"):
            write_archive(tmp_path / f"{split}-{archive}.tar", members)
    data = load_reid("shards", tmp_path)
    assert data.identities == [f"person {identity}" for identity in range(5)]
    assert list(data.train.identities) == sorted(data.train.identities)
    assert np.bincount(data.train.identities).tolist() == data.train.identities.counts.tolist()
    for side in (data.train, data.query):
        for image, identity, camera in zip(side.images, side.identities, side.cameras, strict=True):
            assert said[int(image.name.removesuffix(".jpg"))] == (identity, camera + 1)
    assert [image.archive.name for image in data.query.images] == sorted(p.archive.name for p in data.query.images)


def test_numbers_of_query_and_gallery_stay(tmp_path, write_archive, jpeg, refused):
    def write(split: str, identity: object, camera: object) -> None:
        content = json.dumps({"identity": identity, "camera": camera, "more": [1]}).encode()
        other = json.dumps({"identity": identity, "camera": camera if split == "query" else 9}).encode()
        members = {"0.jpg": jpeg(), "0.json": content, "1.jpg": jpeg(1), "1.json": other}
        write_archive(tmp_path / f"{split}-0.tar", members)

    write("query", 10**17, 4)
    write("gallery", 10**17, 2)
    data = load_reid("shards", tmp_path, train=False)
    assert list(data.query.identities) == [10**17] * 2 and list(data.gallery.cameras) == [2, 9]
    write("gallery", f"{10**17}", 2)
    with refused("as numbers", "as names"):
        load_reid("shards", tmp_path, train=False)


def test_names_as_classes(tmp_path, write_archive, jpeg, refused):
    for split, names in (("train", ["wren", "owl", "owl"]), ("val", ["owl"])):
        members = {}
        for number, name in enumerate(names):
            members |= {f"{number}.JPEG": jpeg(number), f"{number}.json": json.dumps({"label": name}).encode()}
        write_archive(tmp_path / f"{split}-0.tar", members)
    data = load_fgvc("shards", tmp_path)
    assert data.classes == ["owl", "wren"]
    assert (list(data.train.labels), list(data.test.labels)) == ([1, 0, 0], [0])
    write_archive(tmp_path / "val-0.tar", {"0.jpg": jpeg(), "0.json": b'{"label": "emu"}'})
    with refused(tmp_path / "val-0.tar", "class emu", "none of the 2"):
        load_fgvc("shards", tmp_path)


def test_memory_and_time_do_not_grow_with_images(tmp_path, jpeg):
    """An index of a million images, of which nothing is read before it is asked for."""
    code = """
import sys, time
import numpy as np
import psutil
from pathlib import Path
from dual_cross_attention.data import ImageDataset, train_loader, test_transform
from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.fgvc.shards import images_of
from dual_cross_attention.data.shards.index import Index
import torch
folder, count = Path(sys.argv[1]), int(sys.argv[2])
transform = test_transform((8, 8), (8, 8), (0.5,) * 3, (0.5,) * 3)
torch.zeros(8).sum(), np.random.default_rng(0).permutation(70_000)
before, start = psutil.Process().memory_info().rss, time.perf_counter()
index = Index(folder / "big.index", folder)
classes = [str(n) for n in range(len(index.labels))]
data = FineGrainedData("big", classes, images_of(index, classes), images_of(index, classes))
loader = train_loader(data.train, transform, 16, 0, 0, "cpu")
first = next(loader.sampler.batches(1, len(loader) // 2))
labels = [data.train.labels[key.index] for key in first]
print(time.perf_counter() - start, psutil.Process().memory_info().rss - before, len(data.train))
"""
    results = []
    for count in (1000, 1_000_000):
        rows = np.zeros(count, index_module.row_type(10))
        rows["label"], rows["name"] = np.arange(count) % 100, b"000000.jpg"
        about = {
            "dcal index": 1,
            "archives": {"a.tar": [1, 1]},
            "labels": list(range(100)),
            "counts": [count // 100] * 100,
        }
        about |= {"cameras": [0], "name_bytes": 10, "pictures": count}
        index_module.write_index(tmp_path / "big.index", about, [rows])
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, str(tmp_path), str(count)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append([float(word) for word in done.stdout.split()])
    (_, small_memory, _), (seconds, memory, count) = results
    assert count == 1_000_000
    assert memory - small_memory < 8 * 2**20
    assert seconds < 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.permutations(range(7)), st.sampled_from([1, 3, 100]))
def test_rows_are_sorted_a_part_at_a_time(numbers, places, at_once):
    """By a stable sort, which Python's is; some labels have no row."""
    rows = np.zeros(len(numbers), index_module.row_type(1))
    rows["label"] = numbers
    counts = [sum(places[number] == place for number in numbers) for place in range(7)]
    expected = sorted(range(len(numbers)), key=lambda row: places[numbers[row]])
    with patch.object(index_module, "AT_ONCE", at_once), tempfile.TemporaryFile() as file:
        assert index_module._by_label(rows, np.array(places), counts, file).tolist() == expected


def test_index_of_is_named_by_its_archives(classified, tmp_path):
    classified(tmp_path, archives=3)
    archives = sorted(tmp_path.glob("train-*.tar"))
    paths = {index_of(some, "fgvc", "train", []).path for some in (archives, archives[:2], archives[1:])}
    assert len(paths) == 3 and {path.parent for path in paths} == {tmp_path}
