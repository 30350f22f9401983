"""A graph that does not compute what PyTorch does gets no file; a hostile file is refused before it runs."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from dual_cross_attention import InputError, load_model
from dual_cross_attention.export.gate import compare
from dual_cross_attention.export.onnx_export import write_checked
from dual_cross_attention.export.sample_images import synthetic_images
from dual_cross_attention.inference.onnx_files import read_onnx


def _weight_changed(model):
    weight = next(each for each in model.graph.initializer if each.name.endswith("backbone.head.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def _classes_permuted(model):
    for name in ("head.weight", "head.bias"):
        for weight in [each for each in model.graph.initializer if each.name.endswith(name)]:
            values = np.roll(onnx.numpy_helper.to_array(weight), 1, 0)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def _normalized_twice(model):
    for node in model.graph.node:
        node.input[:] = ["twice" if name == "images" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.25), "std"))
    model.graph.node.insert(0, onnx.helper.make_node("Div", ["images", "std"], ["twice"]))


def _batch_fixed(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3


@pytest.mark.parametrize("tamper", [_weight_changed, _classes_permuted, _normalized_twice, _batch_fixed])
def test_a_graph_that_was_tampered_with(tamper, classifier, tmp_path):
    model, images = onnx.load(classifier.file), synthetic_images("fgvc", 8)
    tamper(model)
    with pytest.raises(InputError, match=r"limit|batch"):
        write_checked(model, classifier.saved, ["sa", "glca"], tmp_path / "x.onnx", images, "synthetic images")
    assert not list(tmp_path.iterdir())


def test_the_same_graph_untouched(classifier, tmp_path):
    file, images = tmp_path / "x.onnx", synthetic_images("fgvc", 8)
    result = write_checked(
        onnx.load(classifier.file), classifier.saved, ["sa", "glca"], file, images, "synthetic images"
    )
    assert not result.failures() and file.exists()


@pytest.mark.parametrize("name", ["classes", "calibration"])
def test_other_metadata_than_the_models(name, classifier, tmp_path):
    saved = classifier.saved
    saved = replace(saved, **{name: {"classes": saved.classes[::-1], "calibration": None}[name]})
    result = compare(saved, ["sa", "glca"], read_onnx(classifier.file), synthetic_images("fgvc", 8))
    assert any("labels" in failure for failure in result.failures())


def _elsewhere(weight):
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")


def _announced(weight):
    weight.dims[:] = [2**29]


def _empty_but_announced(weight):
    weight.ClearField("raw_data")
    weight.dims[:] = [2**29]


@pytest.mark.parametrize("change", [_elsewhere, _announced, _empty_but_announced])
def test_a_hostile_tensor(change, classifier, tmp_path):
    model, file = onnx.load(classifier.file), tmp_path / "x.onnx"
    change(model.graph.initializer[0])
    file.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"another file|announces"):
        load_model(file)


def test_a_file_of_more_than_two_gigabytes_is_not_read(tmp_path):
    file = tmp_path / "x.onnx"
    with file.open("wb") as opened:
        opened.truncate(2**31)
    with pytest.raises(InputError, match="at most"):
        load_model(file)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file(share, classifier, tmp_path):
    file, content = tmp_path / "x.onnx", classifier.file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"x\.onnx"):
        load_model(file)
