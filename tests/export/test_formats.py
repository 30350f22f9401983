"""`dcal export --format timm|pt2`."""

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from dual_cross_attention import load_model
from dual_cross_attention.export import program, timm_directory
from dual_cross_attention.export.exporting import default_name


def test_timm_loads_sa_without_this_project(dcal, make_model, tmp_path):
    path, directory = make_model(weights="none"), tmp_path / "for_timm"
    assert dcal("export", path, "--format", "timm", "--output", directory).status == 0
    described = json.loads((directory / "config.json").read_text())["pretrained_cfg"]
    assert not {"license", "tag"} & described.keys()  # of timm's weights, which this model did not start from
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


def test_a_program_says_what_was_compared(dcal, make_model, tmp_path):
    file, extra = tmp_path / "exported.pt2", {"metadata.json": ""}
    outcome = dcal("export", make_model(), "--format", "pt2", "--output", file)
    assert outcome.status == 0 and "compared with PyTorch on 8 images" in outcome.out
    torch.export.load(file, extra_files=extra)
    check = json.loads(json.loads(extra["metadata.json"])["export"])["check"]
    assert check["passed"] and check["images"] == 8


def test_a_program_that_differs_gets_no_file(dcal, make_model, tmp_path, monkeypatch):
    def trace_another(saved, branches, original=program.make_program):
        other = copy.deepcopy(saved)
        with torch.no_grad():
            other.model.backbone.head.weight[0, 0] += 1
        return original(other, branches)

    monkeypatch.setattr(program, "make_program", trace_another)
    outcome = dcal("export", make_model(), "--format", "pt2", "--output", tmp_path / "x.pt2")
    assert outcome.status == 2 and "limit" in outcome.err and not list(tmp_path.glob("x.pt2*"))


@pytest.mark.parametrize("differs", ["weights", "labels", "mean", "logits"])
def test_a_directory_that_timm_loads_as_another_model_gets_no_name(differs, dcal, make_model, tmp_path, monkeypatch):
    def write(saved, directory: Path, original=timm_directory.write_files):
        original(saved, directory)
        described, weights = directory / "config.json", directory / "model.safetensors"
        config = json.loads(described.read_text())
        if differs == "weights":
            state = load_file(weights)
            state["head.bias"] = state["head.bias"] + 1e-6
            save_file(state, weights, {"format": "pt"})
        elif differs == "labels":
            config["label_names"] = config["label_names"][::-1]
        elif differs == "logits":  # with the same weights
            config["model_args"]["act_layer"] = "relu"
        else:
            config["pretrained_cfg"]["mean"] = [0.5, 0.5, 0.5]
        described.write_text(json.dumps(config))

    monkeypatch.setattr(timm_directory, "write_files", write)
    outcome = dcal("export", make_model(), "--format", "timm", "--output", tmp_path / "for_timm")
    assert outcome.status == 2 and differs in outcome.err and not list(tmp_path.glob("for_timm*"))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("runs/birds/best.safetensors", "birds"),
        ("runs/birds/last.safetensors", "birds-last"),  # not that of the best: it would take its place
        ("runs/birds/best_raw.safetensors", "birds-best_raw"),
        ("runs/birds/last_raw.safetensors", "birds-last_raw"),
        ("birds/model.safetensors", "birds"),
        ("runs/birds/mine.safetensors", "mine"),
    ],
)
def test_models_of_a_run_have_names_of_their_own(file, name):
    assert default_name(Path(file)) == name


def test_a_downloaded_model_is_named_after_its_repository():
    assert default_name(Path("/cache/models--org--birds/snapshots/0a1b/model.safetensors")) == "birds"
