"""`dcal reproduce` from the command line."""

import csv

import numpy as np
import pytest

from dual_cross_attention.reproduction.scores import TestScores, test_scores
from tests.helpers import assert_refused, metrics_rows


def test_scores_of_images_are_those_of_the_evaluation(dcal, small, small_reid, tmp_path):
    for flags, metric in ((small, "top1"), (small_reid, "mAP")):
        run = tmp_path / metric
        assert dcal("train", *flags, "--output_dir", run).status == 0
        found = test_scores(run / "last.safetensors")
        expected = metrics_rows(run)[-1][f"val/{metric}"]
        assert found.metrics[metric] == pytest.approx(expected, abs=1e-3)
        assert 100 * np.nanmean(found.images) == pytest.approx(expected, abs=1e-3)
        found.write(tmp_path / "scores.npz")
        again = TestScores.read(tmp_path / "scores.npz")
        np.testing.assert_array_equal(again.images, found.images)
        assert again.metrics == found.metrics


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table9"], ["TABLE", "table9", "ablations"]),
        (["ablations", "--rows", "x-*"], ["x-*", "cub-deit_tiny-full"]),
        (["ablations", "--seeds", "1", "1"], ["--seeds"]),
        (["ablations", "--seeds", "one"], ["--seeds", "one"]),
        (["ablations", "--train_flags", "--seed 3"], ["--train_flags", "seed"]),
        ([], ["TABLE"]),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(dcal, tmp_path, arguments, words):
    assert_refused(dcal("reproduce", *arguments, *(["--output_dir", tmp_path / "out"] if arguments else [])), *words)
    assert not (tmp_path / "out").exists()


def test_a_table_without_runs(dcal, tmp_path):
    outcome = dcal("reproduce", "table1", "--table_only", "--output_dir", tmp_path)
    assert outcome.status == 0 and "`cub-deit_tiny-full`" in outcome.out
    with (tmp_path / "table1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"not finished"}  # every backbone of Table 1 has a recipe
    assert {"cub-cait_xs24-full", "cub-swin_tiny-sa_pwca"} <= {row["row"] for row in rows}


@pytest.mark.slow
def test_a_table_is_trained_and_resumed(dcal, tmp_path):
    arguments = ["reproduce", "ablations", "--scale", "cpu", "--rows", "*-sa_glca", "--seeds", "0", "1"]
    arguments += ["--train_flags", "--epochs 1 --img_size 32", "--output_dir", tmp_path]
    outcome = dcal(*arguments)
    assert outcome.status == 0, outcome.err
    row = next(line for line in outcome.out.splitlines() if line.startswith("| `cub-deit_tiny-sa_glca`"))
    assert "±" in row and "[" in row and row.rstrip(" |").endswith("done")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/test_scores.npz")}
    assert len(times) == 4
    assert dcal(*arguments).status == 0
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/test_scores.npz")}
