"""`examples/onnx_predict.py`, which does without this project."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention import load_model
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.export.onnx_export import preprocess_steps

FILE = Path(__file__).parents[2] / "examples" / "onnx_predict.py"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("onnx_predict", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_photo(path: Path, width: int, height: int) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return f"{path}"


@pytest.mark.parametrize(("keep_aspect", "width"), [(False, 40), (True, 52)])
def test_pixels_are_those_of_the_project(keep_aspect, width, example, tmp_path):
    """Of an image that needs no resize, for which Pillow and torchvision differ."""
    preprocessing = Preprocessing((32, 32), (36, 40), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bicubic", keep_aspect)
    path = save_photo(tmp_path / "a.png", width, 36)
    found = example.read_pixels(path, json.loads(preprocessing.to_json()))
    np.testing.assert_allclose(found, preprocessing(path).numpy(), atol=1e-5)
    assert any("aspect ratio 40:36" in step for step in preprocess_steps(preprocessing)) == keep_aspect


def test_classes_are_those_of_load_model(example, classifier, tmp_path, capsys):
    path = save_photo(tmp_path / "a.png", 40, 36)
    example.main(f"{classifier.file}", [path])
    label, probability = capsys.readouterr().out.split()[1:3]
    model = load_model(classifier.file)
    model.calibration = None  # the example has none
    expected = model.predict(path)
    assert label == expected.label and float(probability) == pytest.approx(100 * expected.probability, abs=0.06)
    assert len(FILE.read_text().splitlines()) < 80
