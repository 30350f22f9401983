"""`dcal check-data` from the command line: what it prints, writes and exits with."""

import json
import shutil

import pytest
from PIL import Image

from tests.helpers import any_says


@pytest.fixture
def folder(make_images, tmp_path):
    return make_images(tmp_path / "pictures")


def test_good_data(dcal, images, tmp_path):
    outcome = dcal("check-data", "--dataset", "folder", "--data_root", images, "--json", tmp_path / "report.json")
    assert (outcome.status, outcome.err) == (0, "")
    assert any_says(outcome.out.splitlines(), "train: 36 images", "3 classes", "0 cannot be read")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["splits"] == {
        "train": {"images": 36, "pictures": 36, "classes": 3, "bad": 0},
        "test": {"images": 18, "pictures": 18, "classes": 3, "bad": 0},
    }


def test_bad_data(dcal, folder):
    broken = sorted(folder.glob("train/*/*"))[:25]
    for path in broken:
        path.write_bytes(b"")
    shutil.copy(folder / "train/cat/11.png", folder / "val/bee/copy.png")
    shutil.rmtree(folder / "val/ant")
    flags = ["check-data", "--dataset", "folder", "--data_root", folder, "--num_workers", 0]
    outcome = dcal(*flags)
    assert (outcome.status, outcome.err) == (1, "")
    lines = outcome.out.splitlines()
    assert "25 images cannot be read:" in lines and any_says(lines, "  and 5 more", "--json")
    assert any_says(lines, f"  train: {broken[19]}: ", "empty") and f"{broken[20]}" not in outcome.out
    assert any_says(lines, "warning: 1 classes")
    outcome = dcal(*flags, "--json", "-")
    assert outcome.status == 1
    report = json.loads(outcome.out)
    assert [found["path"] for found in report["bad"]] == [f"{path}" for path in broken]
    assert report["without_test"] == ["ant"]
    assert report["duplicates"] == [[["train", f"{folder}/train/cat/11.png"], ["test", f"{folder}/val/bee/copy.png"]]]


def test_constant_images_and_few_levels_are_counted(dcal, tmp_path):
    for split in ("train", "val"):
        for name, levels in (("black", 1), ("masks", 2), ("sensor", 16), ("photographs", 200)):
            (tmp_path / split / name).mkdir(parents=True)
            pixels = Image.linear_gradient("L").point([value * levels // 256 for value in range(256)])
            pixels.save(tmp_path / split / name / "1.png")
    outcome = dcal("check-data", "--dataset", "folder", "--data_root", tmp_path, "--num_workers", 0)
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    for title, name in (
        ("2 images are constant", "black"),
        ("2 images have few levels", "masks"),
        ("2 images are dark", "sensor"),
    ):
        at = next(number for number, line in enumerate(lines) if title in line)
        assert f"train: {tmp_path}/train/{name}/1.png" in lines[at + 1]
        assert f"test: {tmp_path}/val/{name}/1.png" in lines[at + 2]
    assert "oddities" not in outcome.out and sum("photographs" in line for line in lines) == 1  # a duplicate


def test_drawn_sets_and_help(dcal):
    assert dcal("check-data").status == 0
    assert "Exit status 0" in dcal("check-data", "--help").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset cub", "cub needs data_root"),
        ("--dataset birds", "unknown dataset 'birds'"),
        ("--task reid --dataset cub", "unknown dataset 'cub'"),
        ("--task birds", "--task: "),
        ("word", "dcal check-data: unexpected word 'word'"),
        ("--num_workers -1", "num_workers: expected a number of at least 0, got -1"),
        ("--json no/where.json", "--json: there is no folder 'no'"),
        ("--dataroot x", "unknown flag --dataroot: did you mean --data_root?"),
    ],
)
def test_what_cannot_be_checked(dcal, arguments, message):
    outcome = dcal("check-data", *arguments.split())
    assert outcome.status == 2
    assert outcome.err.startswith(f"dcal: error: {message}") and outcome.err.count("\n") == 1
