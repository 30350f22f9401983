"""`dcal eval` of a classifier: its metrics are those of the run, as a table and as JSON."""

import json

import pytest
import torch

from dual_cross_attention.cli import main
from dual_cross_attention.inference.model_files import read_model
from tests.helpers import rows_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small):
    """Runs of 3 epochs by ablation, which no test changes."""
    runs = {}

    def train(ablation):
        if ablation not in runs:
            runs[ablation] = tmp_path_factory.mktemp(ablation)
            flags = [f"--ablation={ablation}", "--epochs=3", f"--output_dir={runs[ablation]}"]
            assert main(["train", *small, *flags]) == 0
        return runs[ablation]

    return train


@pytest.mark.parametrize("ablation", ["full", "sa_only"])
def test_eval_agrees_with_the_best_epoch(dcal, trained, tmp_path, ablation):
    run = trained(ablation)
    best = max(rows_of(run), key=lambda row: row["val/top1"])
    shown = dcal("eval", run, "--json", tmp_path / "result.json")
    assert (shown.status, shown.err) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    branches = ("_sa", "_glca", "") if ablation == "full" else ("_sa", "")
    assert result.keys() == {"format_version", "checkpoint", "dataset", "images", "unreadable"} | {
        f"top{k}{branch}" for k in (1, 5) for branch in branches
    }
    assert (result["dataset"], result["images"], result["unreadable"]) == ("folder", 18, 0)
    assert result["checkpoint"] == str(run / "best.safetensors")
    for name in ("top1", "top5", "top1_sa", "top1_glca"):
        assert result.get(name) == best.get(f"val/{name}"), name

    table = {line.split("│")[1].strip(): line for line in shown.out.splitlines() if line.startswith("│")}
    assert list(table) == (["SA", "GLCA", "SA + GLCA"] if ablation == "full" else ["SA"])
    for name, suffix in (("SA", "_sa"), ("GLCA", "_glca"), ("SA + GLCA", "")):
        if name in table:
            assert [f"{result[f'top{k}{suffix}']:.2f}" for k in (1, 5)] == table[name].replace("│", " ").split()[-2:]


def test_eval_with_json_on_standard_output_prints_nothing_else_there(dcal, trained):
    outcome = dcal("eval", "--json", "-", trained("full"))
    assert json.loads(outcome.out)["images"] == 18
    assert "SA + GLCA" in outcome.err


def test_eval_of_a_file_and_of_another_epoch(dcal, trained):
    run = trained("full")
    last = json.loads(dcal("eval", run / "last.safetensors", "--json", "-").out)
    assert last["top1"] == rows_of(run)[-1]["val/top1"]
    assert last["checkpoint"] == str(run / "last.safetensors")
    other = json.loads(dcal("eval", run / "last.safetensors", "--json=-", "--batch_size", 3, "--num_workers", 1).out)
    assert other == last


def test_eval_with_the_data_elsewhere(dcal, trained, make_images, tmp_path):
    """The run says where the data was; --data_root says where it is now."""
    moved = make_images(tmp_path / "moved")
    for path in (moved / "val" / "ant").iterdir():
        path.unlink()
    result = json.loads(dcal("eval", trained("full"), "--data_root", moved, "--json", "-").out)
    assert result["images"] == 12


def test_the_model_can_be_used_from_python(trained):
    saved = read_model(trained("full"))
    assert saved.classes == ["ant", "bee", "cat"]
    assert not saved.model.training
    assert saved.model.predict(torch.rand(2, 3, 32, 32)).shape == (2, 3)
