"""What tells one dataset from another, and what does not."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from dual_cross_attention import InputError
from dual_cross_attention.configs import FGVCConfig, ReIDConfig
from dual_cross_attention.data.fingerprint import DataFingerprint, SplitFingerprint, digest_names, fingerprint_split
from dual_cross_attention.reproduction.run_rows import data_digest
from dual_cross_attention.tasks.registry import read_setup


def of_folder(root: Path, dataset: str = "folder") -> DataFingerprint:
    return read_setup(FGVCConfig(dataset=dataset, data_root=f"{root}")).fingerprint()


@pytest.fixture
def data(make_images, tmp_path) -> Path:
    return make_images(tmp_path / "a")


def test_a_copy_elsewhere_is_the_same(data, tmp_path, monkeypatch):
    original = of_folder(data)
    copy = shutil.copytree(data, tmp_path / "deep" / "er" / "b")
    assert of_folder(copy) == original
    monkeypatch.chdir(copy)
    assert of_folder(Path(".")) == of_folder(Path("../b/")) == original
    (tmp_path / "link").symlink_to(data)
    assert of_folder(tmp_path / "link") == original
    assert original.differences(of_folder(copy)) == []


CHANGES = {
    "an image more": (
        lambda root: shutil.copy(root / "train/ant/00.png", root / "train/ant/x.png"),
        "train images (36",
    ),
    "an image less": (lambda root: (root / "val/ant/00.png").unlink(), "test images ("),
    "another name": (lambda root: (root / "train/ant/00.png").rename(root / "train/ant/zz.png"), "36 train images"),
    "another label": (lambda root: swap(root / "train", "ant", "bee"), "36 train images"),
    "other test images": (lambda root: (root / "val/bee/00.png").rename(root / "val/bee/zz.png"), "test images"),
    "another class name": (lambda root: rename_class(root, "cat", "dog"), "names or order of the labels"),
    "other images of the same names": (lambda root: repaint(root), "content of the 36 train images"),
    "one image replaced by a larger one": (lambda root: larger(root / "train/cat/11.png"), "content of the 36 train"),
    "a class less": (lambda root: drop_class(root, "cat"), "number of labels (3 there, 2 here)"),
}


def repaint(root: Path) -> None:
    """Other images under the same names."""
    for path in (root / "train").rglob("*.png"):
        Image.new("RGB", (32, 32), (9, 9, 9)).save(path)


def larger(path: Path) -> None:
    Image.effect_noise((32, 32), 50).save(path)


def swap(split: Path, one: str, other: str) -> None:
    """An image of one class and one of another change places, under names of their own."""
    (split / one / "00.png").rename(split / other / "from.png")
    (split / other / "01.png").rename(split / one / "from.png")


def rename_class(root: Path, name: str, new: str) -> None:
    for split in ("train", "val"):
        (root / split / name).rename(root / split / new)


def drop_class(root: Path, name: str) -> None:
    for split in ("train", "val"):
        shutil.rmtree(root / split / name)


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_differs(data, change):
    before = of_folder(data)
    change_it, said = CHANGES[change]
    change_it(data)
    (first, *_) = before.differences(of_folder(data))
    assert said in first, first


def test_composed_and_decomposed_names_are_the_same():
    names = ["Grünfink", "Ñandú"]
    assert digest_names(names) == digest_names([unicodedata.normalize("NFD", name) for name in names])
    assert digest_names(names) != digest_names(names[::-1])


def test_names_do_not_run_together():
    assert digest_names(["ab", "c"]) != digest_names(["a", "bc"])


def test_images_in_memory_have_labels_only():
    images = [Image.new("RGB", (2, 2))] * 2
    assert fingerprint_split(images, [0, 1]) == fingerprint_split(images, [0, 1])
    assert fingerprint_split(images, [0, 1]) != fingerprint_split(images, [1, 0])


def test_one_file_and_none():
    assert fingerprint_split([Path("a/b.png")], [0]) == fingerprint_split([Path("c/d/b.png")], [0])
    assert fingerprint_split([Path("b.png")], [0]) == fingerprint_split([Path("c/b.png")], [0])
    assert fingerprint_split([], []) == SplitFingerprint(0, fingerprint_split([], []).digest)


def test_folders_of_like_names_are_not_cut_in_two():
    """What names have in common ends at a folder, not in the middle of a name."""
    one = fingerprint_split([Path("r/cat/1.png"), Path("r/car/1.png")], [0, 1])
    other = fingerprint_split([Path("r/xt/1.png"), Path("r/xr/1.png")], [0, 1])
    assert one != other


def test_cameras_count(make_people, tmp_path):
    root = make_people(tmp_path / "people")

    def now() -> DataFingerprint:
        return read_setup(ReIDConfig(dataset="folder", data_root=f"{root}")).fingerprint()

    before = now()
    assert before.splits.keys() == {"train", "query", "gallery"}
    file = sorted((root / "gallery").rglob("*.png"))[0]
    file.rename(file.with_name(f"other_{file.name}"))
    assert [said for said in before.differences(now()) if "gallery" in said]


def test_archives(dcal, data, tmp_path):
    """From their index: the same on a copy with other times, another one for other labels."""
    first = tmp_path / "first"
    assert dcal("shard", "--dataset=folder", "--data_root", data, "--output_dir", first, "--num_workers=0").status == 0
    original = of_folder(first, "shards")
    copy = shutil.copytree(first, tmp_path / "copy")
    for path in copy.glob("*.tar"):
        os.utime(path, (1, 1))
    assert of_folder(copy, "shards") == original
    without = _without_digest(copy)
    assert of_folder(copy, "shards") == original, "the index of format 1 has no digest"
    assert all(b"digest" not in path.read_bytes() for path in without)
    swap(data / "train", "ant", "bee")
    other = tmp_path / "other"
    assert dcal("shard", "--dataset=folder", "--data_root", data, "--output_dir", other, "--num_workers=0").status == 0
    assert original.differences(of_folder(other, "shards"))


def _without_digest(shards: Path) -> list[Path]:
    """The indices as format 1 wrote them."""
    for path in shards.glob("*.index"):
        raw = path.read_bytes()
        about, _ = json.JSONDecoder().raw_decode(raw.decode("latin-1"))
        start = raw.index(b"\n") + 1
        del about["digest"]
        head = json.dumps(about).encode()
        path.write_bytes(head + b" " * (start - len(head) - 1) + b"\n" + raw[start:])
    return list(shards.glob("*.index"))


def test_it_is_read_as_it_was_written(data):
    fingerprint = of_folder(data)
    assert DataFingerprint.from_json(fingerprint.to_json(), "FILE") == fingerprint


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format_version": 2}', "null", '{"format_version": 2, "splits": [1]}']
)
def test_something_else_is_refused(text):
    with pytest.raises(InputError, match="FILE"):
        DataFingerprint.from_json(text, "FILE")


def test_views_of_training_images():
    """Other views are other data to a run, and not to a comparison of runs; files without them are as they were."""
    split = SplitFingerprint(2, "00ff")
    plain = DataFingerprint("folder", 2, "11", {"train": split, "query": split})
    assert plain.with_views([]) == plain and "views" not in plain.to_json()
    one, other = plain.with_views(["front", ""]), plain.with_views(["front", "rear"])
    assert DataFingerprint.from_json(one.to_json(), "data.json") == one
    assert one.differences(other) == ["views of the training images"] and not one.differences(one)
    assert not one.differences(other, ["query"])
    assert data_digest(one) == data_digest(other) == data_digest(plain)
