"""`dcal export`: the exported file answers as PyTorch does, and a file that does not is refused."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from dual_cross_attention import InputError, load_model
from dual_cross_attention.export.onnx_export import make_proto, write_checked
from dual_cross_attention.export.sample_images import synthetic_images
from dual_cross_attention.inference.model_files import read_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")
IMAGES = [np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8) for seed in range(6)]


def test_a_classifier_answers_as_in_pytorch(dcal, make_model, tmp_path):
    path, file = make_model(), tmp_path / "exported.onnx"
    outcome = dcal("export", path, "--output", file)
    assert outcome.status == 0 and "batches of 1, 2, 5" in outcome.out
    eager, exported = load_model(path, "cpu", "fp32"), load_model(file)
    for branch in (None, "sa", "glca"):
        for one, other in zip(eager.predict(IMAGES, 7, branch), exported.predict(IMAGES, 7, branch), strict=True):
            assert [label for label, _ in one.top] == [label for label, _ in other.top]
            np.testing.assert_allclose([p for _, p in one.top], [p for _, p in other.top], rtol=1e-4)
        torch.testing.assert_close(exported.embed(IMAGES, branch), eager.embed(IMAGES, branch), atol=1e-5, rtol=0)
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(metadata["export"])["check"]["passed"]
    with pytest.raises(InputError, match="exported"):
        exported.explain(IMAGES[0])


@pytest.mark.parametrize("batch", [1, 4])
def test_reid_after_the_neck_in_onnx_runtime_alone(dcal, make_model, tmp_path, batch):
    path, file = make_model("reid", feature="after_neck"), tmp_path / "exported.onnx"
    assert dcal("export", path, "--branch", "sa", "--output", file).status == 0
    eager = load_model(path, "cpu", "fp32")
    pixels = torch.randn(batch, 3, 32, 16)
    session = ort.InferenceSession(str(file))
    assert {each.name for each in session.get_outputs()} == {"embedding", "feature_sa"}
    (found,) = session.run(["embedding"], {"images": pixels.numpy()})
    expected = torch.nn.functional.normalize(eager.model.embed(pixels, "sa", after_neck=True), dim=1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.fixture
def proto(make_model):
    saved = read_model(make_model())
    return saved, make_proto(saved, ["sa", "glca"])


def _weight_changed(model):
    weight = next(each for each in model.graph.initializer if each.name.endswith("backbone.head.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def _classes_permuted(model):
    for name in ("backbone.head.weight", "backbone.head.bias"):
        weight = next(each for each in model.graph.initializer if each.name.endswith(name))
        weight.CopyFrom(onnx.numpy_helper.from_array(np.roll(onnx.numpy_helper.to_array(weight), 1, 0), weight.name))


def _normalized_twice(model):
    for node in model.graph.node:
        node.input[:] = ["twice" if name == "images" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.25), "std"))
    model.graph.node.insert(0, onnx.helper.make_node("Div", ["images", "std"], ["twice"]))


def _batch_fixed(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3


def test_the_gate_refuses_what_was_tampered_with(proto, tmp_path):
    saved, original = proto
    images = synthetic_images("fgvc", 8)
    for tamper in (_weight_changed, _classes_permuted, _normalized_twice, _batch_fixed):
        changed = onnx.ModelProto()
        changed.CopyFrom(original)
        tamper(changed)
        with pytest.raises(InputError, match=r"limit|batch"):
            write_checked(changed, saved, ["sa", "glca"], tmp_path / "x.onnx", images, "synthetic images")
        assert not list(tmp_path.glob("x.onnx*")), tamper
    result = write_checked(original, saved, ["sa", "glca"], tmp_path / "x.onnx", images, "synthetic images")
    assert not result.failures() and (tmp_path / "x.onnx").exists()

    model = onnx.load(tmp_path / "x.onnx")  # a hostile file: weights elsewhere, values that are not there
    weight = model.graph.initializer[0]
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    (tmp_path / "external.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="another file"):
        load_model(tmp_path / "external.onnx")
    weight.ClearField("external_data")
    weight.data_location = onnx.TensorProto.DEFAULT
    weight.dims[:] = [2**29]
    (tmp_path / "announced.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="announces"):
        load_model(tmp_path / "announced.onnx")


def test_timm_loads_sa_without_this_project(dcal, make_model, tmp_path):
    path, directory = make_model(), tmp_path / "for_timm"
    assert dcal("export", path, "--format", "timm", "--output", directory).status == 0
    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    expected = {n.removeprefix("backbone."): v for n, v in load_file(path).items() if n.startswith("backbone.")}
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    pixels = torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        logits = load_model(path, "cpu", "fp32").model.predict_logits(pixels, "sa")["sa"]
        torch.testing.assert_close(model(pixels), logits, atol=1e-5, rtol=0)
    config = json.loads((directory / "config.json").read_text())
    assert config["label_names"] == ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]


def test_a_program_of_torch_export(dcal, make_model, tmp_path):
    path, file = make_model(), tmp_path / "exported.pt2"
    assert "trust" in dcal("export", path, "--format", "pt2", "--output", file).out
    program, pixels = torch.export.load(file).module(), torch.randn(1, 3, 32, 40)
    torch.testing.assert_close(program(pixels)[0], load_model(path, "cpu", "fp32").model.predict(pixels))
