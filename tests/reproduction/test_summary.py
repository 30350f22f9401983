"""The table of a sweep, from runs that were written by hand."""

import csv
import json
import statistics

import numpy as np
import pytest

from dual_cross_attention import InputError
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.data.fingerprint import DataFingerprint, SplitFingerprint
from dual_cross_attention.metrics.intervals import difference_interval
from dual_cross_attention.reproduction.plan import make_plan
from dual_cross_attention.reproduction.scores import TestScores
from dual_cross_attention.reproduction.summary import RowRuns, row_interval, write_summary
from dual_cross_attention.reproduction.sweep import Training
from dual_cross_attention.reproduction.tables import table_rows
from dual_cross_attention.runs.run_folder import RunFolder

BASELINE, FULL = "cub-deit_tiny-sa_only", "cub-deit_tiny-full"


def write_run(path, ablation, seed, correct, test="e"):
    folder = RunFolder(path)
    config = parse_config(["--task=fgvc", "--dataset=toy", f"--ablation={ablation}", f"--seed={seed}", "--epochs=1"])
    folder.write_config(config)
    folder.write_data(
        DataFingerprint("toy", 3, "x", {"train": SplitFingerprint(9, "t"), "test": SplitFingerprint(40, test)})
    )
    row = {"epoch": 1, "val/top1": 100 * float(np.nanmean(correct)), "train/images_per_second": 50.0}
    folder.write_metrics(row | {"peak_memory_mb": 700.4})
    training = Training(path, [], config)
    TestScores(np.asarray(correct, dtype=float), {"top1": row["val/top1"]}).write(training.scores)
    return training


@pytest.fixture
def rows(tmp_path):
    """Three seeds of the baseline, two of `full`, one of which failed once and is done."""
    random = np.random.default_rng(0)
    table = {row.name: row for row in table_rows("ablations")}
    scores = {name: {seed: (random.random(40) < p).astype(float) for seed in (0, 1, 2)}
              for name, p in ((BASELINE, 0.5), (FULL, 0.8))}  # fmt: skip
    runs = []
    for name, ablation in ((BASELINE, "sa_only"), (FULL, "full")):
        trainings = {s: write_run(tmp_path / f"{name}-{s}", ablation, s, scores[name][s]) for s in (0, 1)}
        trainings[2] = Training(tmp_path / f"{name}-2", [])
        runs.append(RowRuns(table[name], trainings))
    return runs, scores


def test_numbers_of_a_row(rows, tmp_path):
    (baseline, full), scores = rows
    text = write_summary("Ablations", [baseline, full], ["a note"], tmp_path, "ablations")
    assert text == (tmp_path / "ablations.md").read_text() and "- a note" in text
    line = next(line for line in text.splitlines() if line.startswith(f"| `{FULL}`"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    means = [100 * scores[FULL][seed].mean() for seed in (0, 1)]
    assert cells[1] == "84.6" and cells[4] == "+2.5"
    assert cells[2] == f"{statistics.mean(means):.2f} ± {statistics.stdev(means):.2f}" and cells[3] == "2"
    pair = [[scores[name][seed] * 100 for seed in (0, 1)] for name in (BASELINE, FULL)]
    expected = difference_interval(*pair)
    assert cells[5] == f"{expected.mean:+.2f} [{expected.low:+.2f}, {expected.high:+.2f}]"
    assert cells[7] == "700" and cells[8] == "not finished: seed 2"
    with (tmp_path / "ablations.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(each["row"], each["seed"], each["status"]) for each in found] == [
        (name, f"{seed}", "not finished" if seed == 2 else "done") for name in (BASELINE, FULL) for seed in range(3)
    ]
    assert float(found[3]["val/top1"]) == pytest.approx(means[0], abs=1e-3)


def test_failures_are_rows(rows, tmp_path):
    (baseline, full), _ = rows
    full.trainings[2].failure.write_text(json.dumps({"reason": "diverged | in epoch 3"}))
    text = write_summary("Ablations", [baseline, full], [], tmp_path, "ablations")
    assert "seed 2 failed: diverged \\| in epoch 3" in text
    assert "failed: diverged | in epoch 3" in (tmp_path / "ablations.csv").read_text()


def test_queries_without_a_match_and_unreadable_images_are_left_out_of_pairs(rows):
    (baseline, full), scores = rows
    for each, name in ((baseline, BASELINE), (full, FULL)):
        for seed in (0, 1):
            changed = scores[name][seed].copy()
            changed[5] = np.nan
            TestScores(changed, {}).write(each.trainings[seed].scores)
    kept = np.arange(40) != 5
    pair = [[100 * scores[name][seed][kept] for seed in (0, 1)] for name in (BASELINE, FULL)]
    assert row_interval(full, baseline) == difference_interval(*pair)


def test_other_test_images_are_refused(rows, tmp_path):
    (baseline, full), _ = rows
    TestScores(np.ones(7), {}).write(full.trainings[0].scores)
    with pytest.raises(InputError, match="different numbers of images"):
        row_interval(full, baseline)
    assert "different numbers of images" in write_summary("Ablations", [baseline, full], [], tmp_path, "table")
    full.trainings[0] = write_run(tmp_path / "other", "full", 0, np.ones(40), test="f")
    with pytest.raises(InputError, match="different images"):
        row_interval(full, baseline)


def test_a_run_of_other_settings_is_not_compared(rows, tmp_path):
    (baseline, full), _ = rows
    config = parse_config(["--task=fgvc", "--dataset=toy", "--ablation=full", "--epochs=7", "--num_workers=3"])
    full.trainings[0] = Training(full.trainings[0].path, [], config)
    text = write_summary("Ablations", [baseline, full], [], tmp_path, "ablations")
    line = next(line for line in text.splitlines() if line.startswith(f"| `{FULL}`"))
    assert "seed 0 was trained with other settings: epochs (1 there, 7 here)" in line and "num_workers" not in line
    assert line.split("|")[4].strip() == "1" and "no interval" in line  # seed 1 alone
    assert "other settings: epochs" in (tmp_path / "ablations.csv").read_text()


def test_scores_that_cannot_be_read(rows):
    (baseline, full), _ = rows
    for content in (b"no scores", b"PK\x03\x04 cut short"):
        full.trainings[1].scores.write_bytes(content)
        with pytest.raises(InputError, match="does not hold test scores"):
            row_interval(full, baseline)


class Asked:
    table, rows, seeds, scale = "ablations", ("*-full",), (3, 4), "cpu"
    data_root = distractor_root = None
    train_flags = "--batch_size 8"


def test_a_plan(tmp_path):
    plan = make_plan(Asked, tmp_path)
    assert [each.path.name for each in plan.trainings] == [
        f"toy_fgvc-{ablation}-seed{seed}" for seed in (3, 4) for ablation in ("sa_only", "full")
    ]
    assert all(each.arguments[-4:-2] == ["--batch_size", "8"] for each in plan.trainings)
    assert all(each.config.batch_size == 8 and each.config.seed in (3, 4) for each in plan.trainings)
    assert "not comparable" in plan.notes[0] and "--batch_size 8" in plan.notes[-1]


def test_runs_of_other_machines_are_in_the_table_and_not_trained(tmp_path):
    """Machines that divide a table by rows or by seeds write the same one."""
    for name in ("sa_pwca-seed0", "full-seed7", "full-seedling", "sa_glca-M2-seed3"):
        (tmp_path / f"toy_fgvc-{name}").mkdir()
    plan = make_plan(Asked, tmp_path)
    assert {each.row.name.removeprefix("cub-deit_tiny-"): [*each.trainings] for each in plan.rows} == {
        "sa_only": [3, 4],
        "sa_pwca": [0],
        "full": [3, 4, 7],
    }
    assert len(plan.trainings) == 4 and not {"toy_fgvc-sa_pwca-seed0", "toy_fgvc-full-seed7"} & {
        each.path.name for each in plan.trainings
    }
    assert "0, 3, 4, 7" in "".join(plan.notes)


@pytest.mark.parametrize(
    "flags",
    ["--seed 3", "--ablation=sa_pwca", "--batch_size '8", "--backbone deit_small_patch16_224", "--epoch 3", "--lr x"],
)
def test_flags_that_rows_set_are_refused(tmp_path, flags):
    class Other(Asked):
        train_flags = flags

    with pytest.raises(InputError):
        make_plan(Other, tmp_path)


def test_flags_cannot_undo_what_a_row_is_about(tmp_path):
    class Other(Asked):
        table, rows, train_flags = "queries", ("*-random",), "--local_queries rollout"

    with pytest.raises(InputError, match="local_queries is set by the row"):
        make_plan(Other, tmp_path)
    Other.train_flags, Other.data_root = "", "photos"
    with pytest.raises(InputError, match="--data_root"):
        make_plan(Other, tmp_path)
