"""`dcal export --format onnx`: the exported file answers as PyTorch does, also without this project."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from dual_cross_attention import InputError, load_model
from dual_cross_attention.export.onnx_export import calibration_of
from dual_cross_attention.inference.model_files import read_model
from tests.export.models import CALIBRATION, MEASURES, write_model

IMAGES = [np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8) for seed in range(6)]


def test_a_classifier_answers_as_in_pytorch(classifier):
    eager, exported = load_model(classifier.source, "cpu", "fp32"), load_model(classifier.file)
    for branch in (None, "sa", "glca"):
        for one, other in zip(eager.predict(IMAGES, 3, branch), exported.predict(IMAGES, 3, branch), strict=True):
            assert [label for label, _ in one.top] == [label for label, _ in other.top] and one.known == other.known
            np.testing.assert_allclose([p for _, p in one.top], [p for _, p in other.top], rtol=1e-4)
        torch.testing.assert_close(exported.embed(IMAGES, branch), eager.embed(IMAGES, branch), atol=1e-5, rtol=0)
    assert exported.labels == ["ant", "bee", "cat"] and exported.calibration == CALIBRATION


def test_the_metadata_says_what_was_compared_and_holds_no_folder(classifier, images):
    metadata = {entry.key: entry.value for entry in onnx.load(classifier.file).metadata_props}
    check = json.loads(metadata["export"])["check"]
    assert check["passed"] and check["batches"] == [1, 2, 5] and check["images_are"] == "test images of folder"
    assert str(images).encode() not in classifier.file.read_bytes()


def test_reid_after_the_neck_in_onnx_runtime_alone(reid):
    eager, session = load_model(reid.source, "cpu", "fp32"), onnxruntime.InferenceSession(str(reid.file))
    outputs = {"embedding", "feature_sa", "feature_glca", "rollout", "local"}
    assert {each.name for each in session.get_outputs()} == outputs
    for batch in (1, 4):
        pixels = torch.randn(batch, 3, 32, 16)
        found, of_glca = session.run(["embedding", "feature_glca"], {"images": pixels.numpy()})
        expected = eager.model.embed(pixels, after_neck=True)
        np.testing.assert_allclose(found, F.normalize(expected, dim=1).numpy(), atol=1e-5)
        np.testing.assert_allclose(of_glca, expected[:, 48:].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["classifier", "reid"])
def test_eval_gives_the_metrics_of_pytorch(name, request, images, people, dcal, tmp_path):
    exported, found, root = request.getfixturevalue(name), [], {"classifier": images, "reid": people}[name]
    for number, model in enumerate((exported.source, exported.file)):
        file = tmp_path / f"{number}.json"
        outcome = dcal("eval", model, "--json", file, "--data_root", root, "--num_workers", 0)
        assert outcome.status == 0, outcome.err
        found.append({name: value for name, value in json.loads(file.read_text()).items() if name != "checkpoint"})
    assert found[0] == pytest.approx(found[1])


def test_the_table_of_one_branch_has_no_row_of_both(classifier, images, dcal, tmp_path):
    file = tmp_path / "glca.onnx"
    assert dcal("export", classifier.source, "--branch", "glca", "--output", file).status == 0
    outcome = dcal("eval", file, "--data_root", images, "--num_workers", 0)
    assert outcome.status == 0 and "GLCA" in outcome.out and "SA + GLCA" not in outcome.out


def test_what_an_exported_graph_cannot_do_is_refused(classifier, reid, dcal, tmp_path):
    maps = ("--output", tmp_path / "maps")
    for words, token in (
        (("eval", reid.file, "--feature", "before_neck"), "after_neck"),
        (("eval", classifier.file, "--precision", "bf16"), "fp32"),
        (("eval", classifier.file, "--device", "cuda"), "CPU"),
        (("predict", classifier.file, "a.png", "--device", "cuda"), "CPU"),
        (("calibrate", classifier.file, "--output", tmp_path / "x.safetensors"), "exported"),
        (("explain", classifier.file, "a.png", *maps), "exported"),
        (("explain", classifier.source, "a.png", "--compare", classifier.file, *maps), "exported"),
        (("explain", classifier.file, "--pair", "a.png", "a.png", *maps), "exported"),
        (("report", classifier.file, "--output", tmp_path / "x.html"), "run folder"),
        (("publish", classifier.file, "org/name", "--dry_run"), "exported"),
        (("export", classifier.file), "exported"),
    ):
        (tmp_path / "a.png").touch()
        outcome = dcal(*[tmp_path / word if word == "a.png" else word for word in words])
        assert outcome.status == 2 and token in outcome.err and outcome.err.count("\n") == 1, outcome
    assert not (tmp_path / "maps").exists()
    with pytest.raises(InputError, match="exported"):
        load_model(classifier.file).explain(IMAGES[0])


def test_attention_and_rollout_share_the_weights_of_a_layer(classifier, tmp_path):
    """ONNX Runtime finds equal nodes: one softmax each of two layers and GLCA; rollout reads CLS's row of the last
    layer alone; and one softmax of each branch's logits."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path / 'optimized.onnx'}"
    options.log_severity_level = 3
    onnxruntime.InferenceSession(f"{classifier.file}", options)
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert sum(node.op_type == "Softmax" for node in nodes) == 2 + 1 + 1 + 2


def test_large_batches_are_run_in_parts(classifier):
    model, pixels = load_model(classifier.file).model, torch.randn(19, 3, 32, 32)
    expected, session, sizes = model.run(pixels[-3:]), model.session, []

    class Counted:
        def run(self, names, inputs):
            sizes.append(len(inputs["images"]))
            return session.run(names, inputs)

    model.session = Counted()
    found = model.run(pixels)
    assert sizes == [8, 8, 3]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name][-3:], values, atol=1e-5)


def test_the_calibration_of_one_branch_alone(tmp_path):
    """The joint answer of a graph of GLCA is GLCA's; no share of known images was measured of it."""
    labels = ["ant", "bee", "cat"]
    saved = read_model(write_model(tmp_path / "x.safetensors", "fgvc", labels, CALIBRATION))
    assert calibration_of(saved, ["sa", "glca"]) == CALIBRATION
    alone = calibration_of(saved, ["glca"])
    assert alone.answers == dict.fromkeys(("together", "glca"), CALIBRATION.answers["glca"]) and alone.held_out is None
    alone.check_fits(["glca"], ["glca"], "x")

    saved.model.glca_is_trained = False  # the joint answer is SA's already, and what was measured is too
    alone = calibration_of(saved, ["sa"])
    assert alone.answers["together"] == CALIBRATION.answers["together"]
    assert alone.held_out == CALIBRATION.held_out and alone.held_out["sa"] == MEASURES
