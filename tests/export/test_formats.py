"""`dcal export --format timm|pt2`."""

import json

import timm
import torch
from safetensors.torch import load_file

from dual_cross_attention import load_model


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
