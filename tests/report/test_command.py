"""`dcal report` as a user types it."""

import json
import shutil

import pytest

from dual_cross_attention.cli import main
from tests.helpers import assert_refused

ON_CPU = ["--device=cpu", "--num_workers=0"]


@pytest.fixture
def copy(hostile_run, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(hostile_run, tmp_path / "copy")


@pytest.fixture(scope="module")
def other_run(tmp_path_factory, small):
    """A run with other settings on other data."""
    run = tmp_path_factory.mktemp("other") / "other"
    assert main(["train", *small, "--epochs=1", "--ablation=sa_only", "--eval_every=1", f"--output_dir={run}"]) == 0
    return run


def test_report_of_a_classifier(hostile_report, hostile_run, read_page, dcal):
    text = read_page(hostile_report).text
    result = json.loads(dcal("eval", hostile_run, "--json=-", *ON_CPU).out)
    for branch, suffix in (("SA", "_sa"), ("GLCA", "_glca"), ("SA + GLCA", "")):
        assert f"{branch} {result[f'top1{suffix}']:.2f} {result[f'top5{suffix}']:.2f}" in text
    assert "15 test images of folder" in text
    assert "chosen by its score on this test split" in text and "The paper has no number" in text
    assert "<i>broken.png" in text and "could not be read" in text
    config = json.loads((hostile_run / "data.json").read_text())
    assert config["splits"]["train"]["digest"] in text
    for word in ("Training loss", "Loss weights w", "Learning rate", "Training accuracy", "not calibrated", "vit_tiny"):
        assert word in text
    assert "epochs 2 100" in text  # setting, run, default


def test_default_output_and_last_model(dcal, copy, read_page):
    outcome = dcal("report", copy, "--model=last", *ON_CPU)
    assert outcome.status == 0, outcome.err
    assert "report.html" in outcome.out and "1 images could not be read" in outcome.out
    assert "Shown is the last model. Epoch 2 of 2. Its epoch was not chosen" in read_page(copy / "report.html").text


def test_a_run_that_has_not_ended(dcal, copy, read_page):
    (copy / "metrics.jsonl").write_text((copy / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    assert dcal("report", copy, *ON_CPU).status == 0
    assert "The run has not ended: epoch 1 of 2" in read_page(copy / "report.html").text


def test_data_that_has_moved(dcal, copy, hostile_images, tmp_path, read_page):
    moved = shutil.copytree(hostile_images / "val", tmp_path / "moved" / "val").parent
    config = (copy / "config.yaml").read_text()
    for file in ("best.safetensors", "last.safetensors"):
        content = (copy / file).read_bytes()
        gone = f"{hostile_images}"[:-1] + "_"
        (copy / file).write_bytes(content.replace(f"{hostile_images}".encode(), gone.encode()))
    assert gone not in config
    assert_refused(dcal("report", copy, *ON_CPU), "test images of the run", "--data_root")
    (moved / "val" / "a & b" / "<i>broken.png").unlink()
    outcome = dcal("report", copy, f"--data_root={moved}", *ON_CPU)
    assert outcome.status == 0, outcome.err
    assert "Not the test data of the run" in read_page(copy / "report.html").text


def test_a_comparison(dcal, copy, other_run, tmp_path, read_page):
    output = tmp_path / "comparison.html"
    outcome = dcal("report", copy, other_run, f"--output={output}")
    assert outcome.status == 0, outcome.err
    text = read_page(output).text
    assert text.index("Differences of settings") < text.index("Scores on the test split") < text.index("Training loss")
    assert "ablation full sa_only" in text and "epochs 2 1" in text
    assert "Other data: other differs from copy" in text and "not comparable" in text
    rows = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in (copy, other_run)]
    assert f"top1 {rows[0]['val/top1']:.2f} {rows[1]['val/top1']:.2f}" in text
    assert f"top1_glca {rows[0]['val/top1_glca']:.2f} –" in text


def test_a_comparison_needs_no_data(dcal, copy, tmp_path, read_page, hostile_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("best.safetensors", "last.safetensors"):
        (copy / file).unlink()
    assert dcal("report", copy, hostile_run).status == 0
    text = read_page(tmp_path / "comparison.html").text
    assert "All settings that change what a model learns are the same" in text and "Other data" not in text
    assert "<u>run" in text


def test_what_is_refused(dcal, hostile_run, reid_run, copy, tmp_path):
    assert_refused(dcal("report", hostile_run, reid_run), "one task", "fgvc", "reid")
    assert_refused(dcal("report", hostile_run, copy, "--device=cpu"), "--device", "one run")
    assert_refused(dcal("report", tmp_path), "run folder", "config.yaml")
    assert_refused(dcal("report", hostile_run, f"--output={tmp_path / 'no' / 'a.html'}"), "--output")
    (copy / "best.safetensors").unlink()
    assert_refused(dcal("report", copy, *ON_CPU), "best.safetensors", "--model")
    (copy / "metrics.jsonl").unlink()
    assert_refused(dcal("report", copy, *ON_CPU), "no finished epoch")
