"""An index takes the exported float32 file of its model, and the other way round, and records what computed vectors."""

import json

import pytest
from PIL import Image

from dual_cross_attention import load_model
from dual_cross_attention.errors import InputError
from dual_cross_attention.export.exporting import export_model
from dual_cross_attention.gallery.models import check_model, settings_of
from dual_cross_attention.gallery.settings import IndexSettings

ON_CPU = ("--device=cpu", "--num_workers=0")


@pytest.fixture
def exported(make_model, tmp_path):
    """A re-identification model of SA alone, and its exported file."""
    pytest.importorskip("onnxscript")
    source = make_model("reid", ablation="sa_only")
    return source, export_model(source, output=tmp_path / "x.onnx")[0]


def photo(path, color):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize((16, 32)).convert("RGB").point(lambda value: value * color % 256).save(path)
    return path


@pytest.mark.parametrize("built_with", ["source", "file"])
def test_search_and_add_with_the_other_one(built_with, exported, dcal, tmp_path):
    source, file = exported
    first, second = (source, file) if built_with == "source" else (file, source)
    photos = [photo(tmp_path / "known" / name / "a.png", color) for color, name in enumerate(("ann", "bob"), 1)]
    index, new = tmp_path / "people.index", photo(tmp_path / "new.png", 7)
    assert dcal("index", "build", index, tmp_path / "known", "--model", first, *ON_CPU).status == 0
    found = dcal("search", index, photos[1], "--model", second, "--output", "-", *ON_CPU)
    assert "exported from" in found.err and json.loads(found.out.splitlines()[0])["identity"] == "bob"
    added = dcal("index", "add", index, new, "--identity", "eve", "--model", second, *ON_CPU)
    assert added.status == 0 and "1 added" in added.out + added.err
    info = json.loads(dcal("index", "info", index, "--json", "-").out)
    assert info["computed_by"] == [f"{second}"] and info["model"] == f"{first}"


def test_which_models_belong_to_an_index(exported, make_model):
    source, file = (load_model(path, "cpu", "fp32") for path in exported)
    of_source, of_file = settings_of(source), settings_of(file)
    assert check_model(source, of_source) is None and check_model(file, of_file) is None
    assert IndexSettings.from_json(of_file.to_json(), "x") == of_file and '"source"' not in of_source.to_json()
    other = load_model(make_model("reid", seed=1, ablation="sa_only"), "cpu", "fp32")
    file.model.source_digest = None  # as of float16 and int8
    for model, settings in ((other, of_source), (other, of_file), (file, of_source)):
        with pytest.raises(InputError, match="not the model of this index"):
            check_model(model, settings)
