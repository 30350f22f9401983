"""Training, evaluation, calibration and checks of data without cameras, by commands."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.helpers import assert_refused, assert_says


@pytest.fixture(scope="module")
def wild(tmp_path_factory) -> Path:
    """train/ and test/ of individuals, named as Amber_Left_Face0.png."""
    root = tmp_path_factory.mktemp("wild")
    for split, names in (("train", ("Ada", "Bo", "Cy")), ("test", ("Amber", "Bella", "Cleo"))):
        for number, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for side in range(4):
                color = (60 * number + 10 * side, 200 - 50 * number, 30 + 40 * side)
                image = Image.new("RGB", (16, 32), color)
                image.save(root / split / name / f"{name}_{('Left', 'Right')[side % 2]}_Face{side}.png")
    return root


@pytest.fixture
def train(dcal, small_reid, wild, tmp_path):
    """`train(*flags)` trains on `wild`; returns the run folder and what was printed."""

    def run(*flags: str):
        outcome = dcal(
            "train", *small_reid, f"--data_root={wild}", f"--output_dir={tmp_path / 'run'}", "--batch_size=6", *flags
        )
        assert outcome.status == 0, outcome
        return tmp_path / "run", outcome.out.replace("\n", " ")

    return run


def test_from_training_to_a_ranking_file(train, dcal, tmp_path):
    run, printed = train()
    assert_says(printed, "12 test images of 3 identities", "leave-one-out", "no cameras", "Amber_Left_Face0.png")
    assert yaml.safe_load((run / "config.yaml").read_text())["cameras"] == "auto"
    ranking, result = tmp_path / "ranking.jsonl", tmp_path / "result.json"
    outcome = dcal("eval", run, "--device=cpu", f"--save_ranking={ranking}", f"--json={result}")
    assert outcome.status == 0 and "not the test data" not in outcome.out
    rows = [json.loads(line) for line in ranking.read_text().splitlines()]
    assert len({row["query"] for row in rows}) == 12
    precisions = []
    for row in rows:
        assert row["query"] not in row["gallery"] and len(set(row["gallery"])) == 11
        hits = [rank for rank, match in enumerate(row["matches"], 1) if match]
        assert len(hits) == 3
        precisions.append(sum(n / rank for n, rank in enumerate(hits, 1)) / 3)
    metrics = json.loads(result.read_text())
    assert metrics["mAP"] == pytest.approx(100 * sum(precisions) / 12)
    assert (metrics["images"], metrics["valid_queries"]) == (12, 12)
    outcome = dcal("eval", run, "--device=cpu", "--rerank")
    assert outcome.status == 0, outcome


@pytest.mark.parametrize("where", ["output_dir", "default", "resume"])
def test_a_run_of_before_keeps_its_cameras(dcal, small_reid, tmp_path, monkeypatch, where):
    """Its config.yaml names no cameras: they are from names, although these would not be taken for cameras today."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("Ada", "Bo", "Cy", "Dee")):
        for split, side in (("train", "L"), ("train", "R"), ("query", "L"), ("gallery", "R")):
            (tmp_path / f"data/{split}/{name}").mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (16, 32), (60 * number, 100, 50 * (side == "L")))
            image.save(tmp_path / f"data/{split}/{name}/{name}{side}_1.png")
    command = ["train", *small_reid, f"--data_root={tmp_path / 'data'}", "--epochs=1"]
    if where == "output_dir":
        command.append("--output_dir=run")
    assert dcal(*command, "--cameras=name").status == 0
    (config,) = tmp_path.glob("run*/**/config.yaml")
    settings = yaml.safe_load(config.read_text())
    del settings["cameras"], settings["bbox"]
    config.write_text(yaml.safe_dump(settings))
    if where == "resume":
        outcome = dcal(*command, f"--resume={config.parent}", "--epochs=2", "--output_dir=more")
        assert outcome.status == 0 and "cameras: 8" in outcome.out and "epoch 2/2" in outcome.out, outcome
    else:
        outcome = dcal(*command)
        assert outcome.status == 0 and "nothing to do" in outcome.out, outcome
        assert len([*tmp_path.glob("run*/**/config.yaml")]) == 1


def test_calibration(train, dcal, tmp_path):
    run, _ = train()
    result = tmp_path / "result.json"
    outcome = dcal("calibrate", run, "--device=cpu", "--fpir=0.2", f"--json={result}")
    assert outcome.status == 0, outcome
    found = json.loads(result.read_text())
    assert (found["identities"], found["images"]) == (3, 12)  # each image once


def test_eval_takes_other_cameras(train, dcal, people):
    run, _ = train()
    refused = dcal("eval", run, "--device=cpu", "--cameras=name")
    assert_refused(refused, "none of the 12 queries", "Amber")
    kinds = {}
    for cameras in ("auto", "none", "name"):
        outcome = dcal("eval", run, "--device=cpu", f"--data_root={people}", f"--cameras={cameras}")
        assert outcome.status == 0, outcome
        kinds[cameras] = "cameras: none" in outcome.out
    assert kinds == {"auto": False, "none": True, "name": False}


def test_check_data(dcal, wild):
    outcome = dcal("check-data", "--task=reid", "--dataset=folder", f"--data_root={wild}", "--num_workers=0")
    assert outcome.status == 0
    assert_says(outcome.out, "cameras: none", "test: 12 images of 3", "train: 12 images")
    named = dcal("check-data", "--task=reid", "--dataset=folder", f"--data_root={wild}", "--cameras=name")
    assert_refused(named, "none of the 12 queries")


def test_cameras_are_a_setting_of_reid(dcal, small):
    assert_refused(dcal("train", *small, "--cameras=none"), "--cameras", "reid")
    assert_refused(dcal("train", "--task=reid", "--dataset=toy", "--cameras=none"), "--cameras none", "folder")
