"""What a report shows of a classifier, against the rows that `dcal eval --output` writes."""

import csv
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from dual_cross_attention import load_model
from dual_cross_attention.explanation.faithfulness import measure_faithfulness
from dual_cross_attention.inference.evaluation import evaluate
from dual_cross_attention.inference.model_files import write_calibration
from dual_cross_attention.metrics.calibration import expected_calibration_error
from dual_cross_attention.report.classification import ClassifierResult, evaluate_classifier
from dual_cross_attention.report.classifier_report import shown_names
from dual_cross_attention.report.faithfulness import measure_default_map, sample_positions
from dual_cross_attention.report.opened_run import open_run
from dual_cross_attention.report.reliability import reliability
from dual_cross_attention.runs.run_folder import RunFolder

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def opened(hostile_run):
    return open_run(RunFolder(hostile_run), "best", None, None, "cpu", None, None, 0, QUIET)


@pytest.fixture(scope="module")
def result(opened) -> ClassifierResult:
    return evaluate_classifier(opened, QUIET)


@pytest.fixture(scope="module")
def evaluated(hostile_run, tmp_path_factory):
    """Metrics and rows of `dcal eval`."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    metrics = evaluate(hostile_run, device="cpu", num_workers=0, output=path)
    return metrics, list(csv.DictReader(path.open(newline="")))


def test_metrics_and_predictions_are_those_of_eval(opened, result, evaluated):
    metrics, rows = evaluated
    assert result.metrics == {name: metrics[name] for name in result.metrics} and "top1_glca" in result.metrics
    assert [*opened.unreadable.found] == [row["path"] for row in rows if row["error"]] and len(rows) == 16
    names = opened.loaded.labels
    readable = [row for row in rows if not row["error"]]
    assert [opened.name(each) for each in result.positions] == [row["path"] for row in readable]
    assert [names[each] for each in result.predicted] == [row["prediction"] for row in readable]
    assert result.confidence == pytest.approx([float(row["probability"]) for row in readable], abs=1e-5)
    assert np.array_equal(result.confidence, result.uncalibrated)


def test_classes_pairs_and_mistakes(opened, result, evaluated):
    names = opened.loaded.labels
    rows = [row for row in evaluated[1] if not row["error"]]
    of_class = Counter(row["label"] for row in rows)
    right = Counter(row["label"] for row in rows if row["label"] == row["prediction"])
    by_class = result.by_class()
    assert {names[each.label]: (each.images, each.accuracy) for each in by_class} == {
        name: (of_class[name], pytest.approx(100 * right[name] / of_class[name])) for name in of_class
    }
    assert [each.accuracy for each in by_class] == sorted(each.accuracy for each in by_class)
    mistakes = Counter((row["label"], row["prediction"]) for row in rows if row["label"] != row["prediction"])
    assert mistakes
    pairs = result.confused_pairs(100)
    assert sum(each.first_as_second + each.second_as_first for each in pairs) == sum(mistakes.values())
    for each in pairs:
        first, second = names[each.first], names[each.second]
        assert each.first_as_second == mistakes[first, second] >= each.second_as_first == mistakes[second, first]
    totals = [each.first_as_second + each.second_as_first for each in pairs]
    assert totals == sorted(totals, reverse=True) and len(result.confused_pairs(1)) == 1
    wrong = sorted((float(row["probability"]) for row in rows if row["label"] != row["prediction"]), reverse=True)
    assert result.confidence[result.confident_mistakes(3)] == pytest.approx(wrong[:3], abs=1e-5)
    shown = result.rows_of(pairs[0].first, pairs[0].second, 2)
    assert {(names[result.labels[row]], names[result.predicted[row]]) for row in shown} == {
        (names[pairs[0].first], names[pairs[0].second])
    }


def test_reliability_is_the_calibration_error():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 6, generator=generator)
    labels = torch.randint(6, (500,), generator=generator)
    best = logits.double().softmax(-1).max(-1)
    bins = reliability(best.values.numpy(), (best.indices == labels).numpy())
    assert bins.counts.sum() == 500 and len(bins.counts) == 15
    assert bins.ece == pytest.approx(expected_calibration_error(logits, labels), abs=1e-6)
    sure = reliability(np.array([1.0, 1.0, 0.5]), np.array([True, False, True]))
    assert sure.counts[-1] == 2 and sure.accuracy[-1] == 0.5 and sure.ece == pytest.approx((2 * 0.5 + 0.5) / 3)


def test_probabilities_of_a_calibrated_model(hostile_run, calibration, tmp_path, dcal, read_page):
    run = shutil.copytree(hostile_run, tmp_path / "run")
    write_calibration(run / "best.safetensors", run / "best.safetensors", calibration, None)
    evaluate(run, device="cpu", num_workers=0, output=tmp_path / "rows.csv")
    rows = [row for row in csv.DictReader((tmp_path / "rows.csv").open(newline="")) if not row["error"]]
    opened = open_run(RunFolder(run), "best", None, None, "cpu", None, None, 0, QUIET)
    found = evaluate_classifier(opened, QUIET)
    assert found.confidence == pytest.approx([float(row["probability"]) for row in rows], abs=1e-5)
    assert found.reliability().ece != found.reliability(is_calibrated=False).ece
    assert dcal("report", run, "--device=cpu", "--num_workers=0").status == 0
    text = read_page(run / "report.html").text
    assert "The model is calibrated, on 300 images of folder (val)" in text
    assert f"calibrated: ECE {100 * found.reliability().ece:.2f} %" in text


def test_faithfulness_is_measured_on_a_fixed_sample(opened, result):
    row = measure_default_map(opened, result.positions, QUIET)
    files = [Path(opened.name(each)) for each in result.positions]
    found = measure_faithfulness(load_model(opened.loaded.source, "cpu"), files, ["product"])["product"]
    assert row.images == len(files) == 15 and "GLCA" in row.title
    assert row.deletion[0] == pytest.approx(found.deletion.mean().item(), abs=1e-5)
    half = 1.96 * found.insertion.std().item() / 15**0.5
    assert row.insertion == pytest.approx((found.insertion.mean().item(), half), abs=1e-5)


def test_names_of_classes_stay_different():
    assert shown_names(["001.Red_bird", "002.Blue_bird"]) == ["Red bird", "Blue bird"]
    assert shown_names(["1.5", "2.5"]) == ["1.5", "2.5"]


def test_sample_is_spaced_evenly():
    assert sample_positions(3) == [0, 1, 2]
    sample = sample_positions(2903)
    assert len(sample) == 100 and sample[0] == 0 and sample[-1] == 2902
    assert {later - earlier for earlier, later in pairwise(sample)} <= {29, 30}
