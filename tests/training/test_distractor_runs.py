"""Trainings with distractors out of the batch, and with noise, from the command line."""

import json

import pytest
from PIL import Image

from tests.helpers import TINY, assert_refused, metrics_rows


@pytest.mark.parametrize("task", ["fgvc", "reid"])
@pytest.mark.parametrize("flags", [["--distractors=half"], ["--distractors=noise", "--image_noise=0.1"]], ids=str)
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(
    dcal, train_until, tasks, assert_same_results, tmp_path, task, flags
):
    flags = [*tasks[task], *flags, "--label_noise=0.1"]
    assert dcal("train", *flags, "--output_dir", tmp_path / "whole").status == 0
    ended = train_until(
        [*flags, "--checkpoint_minutes=0"], tmp_path / "run", kind="backward, after", number=4, does="SIGTERM"
    )
    assert ended.status == 75, ended.err
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    assert_same_results(tmp_path / "run", tmp_path / "whole")


def test_each_of_them_trains_another_model(dcal, tasks, tmp_path):
    rows = []
    for number, flags in enumerate(
        ([], ["--distractors=same_class"], ["--distractors=other_class"], ["--distractors=noise"])
    ):
        outcome = dcal("train", *tasks["fgvc"], *flags, "--epochs=1", "--output_dir", tmp_path / f"{number}")
        assert outcome.status == 0, outcome.err
        rows.append(json.dumps(metrics_rows(tmp_path / f"{number}")[-1]["train/loss_pwca"]))
    assert len(set(rows)) == 4


def test_distractors_of_another_folder_are_part_of_the_data(dcal, tasks, tmp_path):
    others = tmp_path / "others"
    (others / "deep").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (20, 20), (90 * number, 0, 0)).save(others / "deep" / f"{number}.png")
    (others / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    flags = [*tasks["fgvc"], "--distractors=dataset", "--distractor_root", others, "--output_dir", tmp_path / "run"]
    outcome = dcal("train", *flags)
    assert outcome.status == 0, outcome.err
    assert "distractor_root" in outcome.out and ".heic: 1" in outcome.out
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["splits"]["distractors"]["images"] == 3
    (others / "deep" / "3.png").write_bytes((others / "deep" / "2.png").read_bytes())
    assert_refused(dcal("train", *flags), "distractors images", "3 there, 4 here")
    assert dcal("eval", tmp_path / "run").status == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--distractors=dataset"], ["distractor_root"]),
        (["--distractor_root=x"], ["distractor_root", "any"]),
        (["--distractors=dataset", "--distractor_root=/nowhere/at/all"], ["distractor_root", "/nowhere/at/all"]),
        (["--label_noise=1.5"], ["label_noise", "1.5"]),
        (["--distractors=twice"], ["distractors", "twice"]),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(dcal, tasks, tmp_path, flags, words):
    assert_refused(dcal("train", *tasks["fgvc"], *flags, "--output_dir", tmp_path / "run"), *words)


def test_an_empty_folder_of_distractors(dcal, tasks, tmp_path):
    (tmp_path / "empty").mkdir()
    flags = ["--distractors=dataset", "--distractor_root", tmp_path / "empty"]
    assert_refused(dcal("train", *tasks["fgvc"], *flags, "--output_dir", tmp_path / "run"), "holds none")


def test_settings_without_effect_are_said(dcal, tasks, tmp_path):
    flags = ["--distractors=noise", "--distractor_stream=sa", "--epochs=1"]
    outcome = dcal("train", *tasks["fgvc"], *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 0 and "no effect: distractor_stream" in outcome.out + outcome.err
    flags = ["--ablation=sa_only", "--distractors=same_class", "--epochs=1"]
    outcome = dcal("train", *tasks["fgvc"], *flags, "--output_dir", tmp_path / "other")
    assert outcome.status == 0 and "no effect: distractors" in outcome.out + outcome.err
    flags = ["--local_ratio=0.5", "--epochs=1", "--output_dir"]
    outcome = dcal("train", *tasks["fgvc"], *flags, tmp_path / "class_token")
    assert outcome.status == 0 and "no effect: local_ratio" in outcome.out + outcome.err
    pooled = json.dumps(TINY | {"global_pool": "avg"})
    outcome = dcal("train", *tasks["fgvc"], f"--backbone_kwargs={pooled}", *flags, tmp_path / "pool")
    assert outcome.status == 0 and "no effect" not in outcome.out + outcome.err
