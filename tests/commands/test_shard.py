"""`dcal shard`, from the command line, end to end."""

import json
import os
import shutil
import tarfile

import pytest
from PIL import Image

from dual_cross_attention.data import load_fgvc
from dual_cross_attention.data.shards.discovery import DESCRIPTION
from tests.commands.sharded import TASKS, archives_of, shard, write_crowd
from tests.helpers import assert_refused


@pytest.mark.parametrize("task", TASKS)
def test_the_same_images_give_the_same_archives(dcal, folders, tmp_path, task):
    shard(dcal, task, folders[task], tmp_path / "one")
    copy = shutil.copytree(folders[task], tmp_path / "copy")
    for path in copy.rglob("*.png"):
        os.utime(path, (1, 1))
    shard(dcal, task, copy, tmp_path / "two", "--num_workers", 2)
    ours = archives_of(tmp_path / "one")
    assert ours == archives_of(tmp_path / "two") and len(ours) == (2 if task == "fgvc" else 3)
    with tarfile.open(tmp_path / "one" / "train-000000.tar") as archive:
        kinds = "png cls" if task == "fgvc" else "png json"
        for number, member in enumerate(archive):
            assert member.name == f"{number // 2:06}.{kinds.split()[number % 2]}"
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
    if task == "fgvc":
        shard(dcal, task, copy, tmp_path / "three", "--seed", 1)
        assert archives_of(tmp_path / "three")["train-000000.tar"] != ours["train-000000.tar"]
        assert archives_of(tmp_path / "three")["val-000000.tar"] == ours["val-000000.tar"]


def test_unreadable_images_are_left_out(dcal, make_images, tmp_path):
    root = make_images(tmp_path / "pictures")
    broken = [root / "train" / "bee" / "03.png", root / "val" / "cat" / "01.png"]
    for path in broken:
        path.write_bytes(b"no image")
    lines = shard(dcal, "fgvc", root, tmp_path / "shards")
    for path in broken:
        assert sum(f"left out: {path}: " in line for line in lines) == 1
    assert "2 images" in lines[-4] and "left out" in lines[-4]
    data = load_fgvc("shards", tmp_path / "shards")
    assert (len(data.train), len(data.test)) == (35, 17)
    flags = ["shard", "--dataset=folder", f"--data_root={root}", "--num_workers=0"]
    assert_refused(
        dcal(*flags, f"--output_dir={tmp_path / 'strict'}", "--max_bad_images=1"),
        "--max_bad_images allows 1",
        broken[0],
    )


def test_formats_that_are_not_what_a_file_is_called(dcal, make_images, tmp_path):
    """Some cameras put a second image behind a JPEG, which PIL calls MPO; it stays as it is."""
    root = make_images(tmp_path / "pictures")
    images = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    path = root / "val" / "cat" / "00.jpg"
    images[0].save(path, "MPO", save_all=True, append_images=images[1:])
    images[0].save(root / "val" / "cat" / "000.png", "WEBP")
    (root / "val" / "cat" / "odd name.tar.gz.png").write_bytes((root / "val" / "cat" / "01.png").read_bytes())
    shard(dcal, "fgvc", root, tmp_path / "shards")
    test = load_fgvc("shards", tmp_path / "shards").test
    assert len(test) == 21
    stored = {image.open().read(): image.name.partition(".")[2] for image in test.images}
    assert stored[path.read_bytes()] == "jpg"
    assert stored[(root / "val" / "cat" / "000.png").read_bytes()] == "webp"


def test_an_identity_without_a_readable_image(dcal, tmp_path):
    crowd = write_crowd(tmp_path / "crowd")
    for path in (crowd / "train" / "2").iterdir():
        path.write_bytes(b"")
    shard(dcal, "reid", crowd, tmp_path / "shards")
    assert json.loads((tmp_path / "shards" / DESCRIPTION).read_text())["classes"] == [*"013456789"]
    flags = [*TASKS["reid"], "--dataset=shards", f"--data_root={tmp_path / 'shards'}", "--epochs=1"]
    assert dcal("train", *flags, "--output_dir", tmp_path / "run").status == 0


def test_folders_that_hold_something_else(dcal, images, crowd, tmp_path):
    flags = ["shard", "--dataset=folder", "--num_workers=0"]
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.tar").touch()
    before = dcal(*flags, f"--data_root={images}", f"--output_dir={tmp_path / 'others'}")
    assert_refused(before, "archives", "did not write", "a.tar")
    assert [path.name for path in (tmp_path / "others").glob("[!.]*")] == ["a.tar"]
    shard(dcal, "fgvc", images, tmp_path / "shards")
    there = archives_of(tmp_path / "shards")
    other = [f"--output_dir={tmp_path / 'shards'}"]
    assert_refused(
        dcal(*flags, "--task=reid", f"--data_root={crowd}", *other), "something else", "task: fgvc there, reid here"
    )
    assert_refused(dcal(*flags, f"--data_root={images}", *other, "--shard_mb=1"), "something else", "shard_mb")
    assert_refused(dcal("shard", *other, "--num_workers=0"), "something else", "dataset: folder there, toy here")
    assert archives_of(tmp_path / "shards") == there
    assert_refused(
        dcal("train", *TASKS["reid"], "--dataset=shards", f"--data_root={tmp_path / 'shards'}"), "--task fgvc"
    )
    (tmp_path / "shards" / DESCRIPTION).write_text('{"task": "fgvc", "archives": {"train": ["../a.tar"]}}')
    assert_refused(
        dcal("train", *TASKS["fgvc"], "--dataset=shards", *[f"--data_root={tmp_path / 'shards'}"]), "expected what dcal"
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["expected --output_dir"]),
        (["--output_dir=x", "--shard_mb=0"], ["shard_mb", "at least 1, got 0"]),
        (["--output_dir=x", "--num_workers=-1"], ["num_workers", "at least 0, got -1"]),
        (["--output_dir=x", "--max_bad_images=-1"], ["max_bad_images", "at least 0, got -1"]),
        (["--output_dir=x", "--dataset=birds"], ["unknown dataset 'birds'"]),
        (["--output_dir=x", "--dataset=cub"], ["cub needs data_root"]),
        (["--output_dir=x", "word"], ["unexpected word 'word'"]),
        (["--outputdir=x"], ["unknown flag --outputdir: did you mean --output_dir?"]),
    ],
)
def test_what_cannot_be_written(dcal, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    assert_refused(dcal("shard", *flags), *words)
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_a_file(dcal, images, tmp_path):
    (tmp_path / "file").touch()
    flags = ["shard", "--dataset=folder", f"--data_root={images}", f"--output_dir={tmp_path / 'file'}"]
    assert_refused(dcal(*flags), "cannot write to", tmp_path / "file")


def test_help(dcal):
    outcome = dcal("shard", "--help")
    assert outcome.status == 0 and "WebDataset" in outcome.out and "--shard_mb" in outcome.out
    assert "  shard " in dcal().out
