"""The page of an exported file: the same answers without attention maps."""

import pytest

from dual_cross_attention import load_model
from dual_cross_attention.errors import InputError
from dual_cross_attention.export.exporting import export_model
from dual_cross_attention.web.answers import answer_image
from dual_cross_attention.web.uploads import Upload

pytest.importorskip("gradio", reason="the page needs the extra [web]")
pytest.importorskip("onnxscript")

from dual_cross_attention.web import markup
from dual_cross_attention.web.page import build_page


def test_a_classifier_answers_as_in_pytorch(make_model, tmp_path, photos):
    source = make_model()
    eager, exported = load_model(source, "cpu", "fp32"), load_model(export_model(source, output=tmp_path / "x.onnx")[0])
    upload = Upload(f"{photos / '0.png'}", "0.png")
    one, other = (answer_image(model, upload, 3) for model in (eager, exported))
    assert [label for label, _ in other.prediction.top] == [label for label, _ in one.prediction.top]
    assert {name: each.label for name, each in other.branches.items()} == {n: e.label for n, e in one.branches.items()}
    assert other.explanation is None and other.branches.keys() == {"sa", "glca"}
    shown = markup.answer_section(other, False)
    assert "Each branch" in shown and other.prediction.label in shown and markup.maps_section(other.explanation) == ""
    build_page(exported)


def test_re_identification_needs_an_index(make_model, tmp_path, dcal):
    file = export_model(make_model("reid", ablation="sa_only"), output=tmp_path / "x.onnx")[0]
    with pytest.raises(InputError, match="--index"):
        build_page(load_model(file))
    outcome = dcal("demo", file)
    assert outcome.status == 2 and "--index" in outcome.err and outcome.err.count("\n") == 1
