"""`dcal export --dtype fp16|int8`: judged by the accuracy on the run's test images."""

import json

import onnx
import pytest

from dual_cross_attention import load_model


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_the_accuracy_is_measured_and_limited(dtype, classifier, images, dcal, tmp_path):
    file, words = tmp_path / "x.onnx", ("export", classifier.source, "--dtype", dtype, "--branch", "sa")
    outcome = dcal(*words, "--output", file, "--max_loss", 100)
    assert outcome.status == 0 and "PyTorch" in outcome.out, outcome.err
    export = json.loads({entry.key: entry.value for entry in onnx.load(file).metadata_props}["export"])
    measured = export["check"]
    assert export["dtype"] == dtype and measured["images"] == 18
    for model, options, name in ((classifier.source, ("--precision", "fp32"), "pytorch"), (file, (), "exported")):
        result = tmp_path / f"{name}.json"
        dcal("eval", model, "--json", result, "--data_root", images, "--num_workers", 0, *options)
        assert json.loads(result.read_text())["top1_sa"] == pytest.approx(measured[name]["top1"])
    assert file.stat().st_size < (0.7 if dtype == "fp16" else 0.6) * classifier.file.stat().st_size
    assert load_model(file).precision == dtype
    outcome = dcal("publish", file, "org/name", "--dry_run")
    assert outcome.status == 2 and "exported graph" in outcome.err and "precision" not in outcome.err


def test_a_loss_beyond_the_limit_gives_no_file(classifier, dcal, tmp_path, monkeypatch):
    from dual_cross_attention.export import reduced

    measured = iter([{"top1": 90.0}, {"top1": 89.4}])
    monkeypatch.setattr(reduced, "measure", lambda *arguments: next(measured))
    outcome = dcal("export", classifier.source, "--dtype", "int8", "--output", tmp_path / "x.onnx")
    assert outcome.status == 2 and "0.60" in outcome.err and "--max_loss" in outcome.err
    assert not list(tmp_path.glob("x.onnx*"))


def test_what_cannot_be_judged_is_refused(classifier, dcal, tmp_path):
    for words, token in (
        (("--dtype", "int8", "--data_root", tmp_path / "nowhere"), "accuracy"),
        (("--dtype", "int8", "--format", "timm"), "onnx"),
        (("--max_loss", 1), "fp16"),
    ):
        outcome = dcal("export", classifier.source, *words, "--output", tmp_path / "x.onnx")
        assert outcome.status == 2 and token in outcome.err and outcome.err.count("\n") == 1, outcome
