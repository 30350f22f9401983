"""The benchmarks of whole models run from end to end, on models that are as small as they get."""

import json

import pytest

from benchmarks import inference, small_card, train_step

SMALL = ["--device=cpu", "--img_size", "32", "--num_classes=5"]
TIMING = ["--repeats=1", "--memory=false"]


@pytest.fixture(autouse=True)
def memory_is_given_back(monkeypatch):
    """What the benchmarks ask of malloc would stay for all later tests."""
    for module in (inference, small_card, train_step):
        monkeypatch.setattr(module, "keep_freed_memory", lambda: None)


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_train_step(task, tmp_path, capsys):
    flags = [*SMALL, *TIMING, f"--task={task}", "--batch_size=8", f"--json={tmp_path / 'numbers.json'}"]
    cheaper = "full:pwca_blocks=4,distractor_tokens=0.25"
    assert train_step.main([*flags, "--rows", "timm", "sa_only", "full", "textbook", cheaper]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    flops = {row: cells["FLOPs / sa_only"] for row, cells in numbers["rows"].items()}
    assert flops["sa_only"] == 1.0 < flops[cheaper] < flops["full"] < flops["textbook"]
    assert numbers["rows"]["full"]["peak MiB"] is None
    assert numbers["rows"]["full"]["images/s"] == pytest.approx(8e3 / numbers["rows"]["full"]["ms"])
    assert 0 < numbers["rollout_percent"] < 100
    assert "| `textbook` |" in capsys.readouterr().out


@pytest.mark.parametrize("row", ["fuller", "timm:pwca_blocks=4"])
def test_unknown_rows_are_refused(row, capsys):
    with pytest.raises(SystemExit):
        train_step.main(["--rows", row])
    assert "there are timm, full" in capsys.readouterr().err


def test_inference(tmp_path):
    assert inference.main([*SMALL, *TIMING, "--batch_sizes", "1", "2", f"--json={tmp_path / 'numbers.json'}"]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())["batch_sizes"]
    assert set(numbers) == {"1", "2"}
    for rows in numbers.values():
        assert list(rows) == ["timm", "sa", "glca", "both"]
        assert rows["timm"]["time / timm"] == 1.0
        assert rows["sa"]["FLOPs / timm"] <= 1.0 < rows["both"]["FLOPs / timm"]


def test_small_card(tmp_path):
    flags = [*SMALL, "--batch_size=2", "--steps=11", f"--json={tmp_path / 'numbers.json'}"]
    assert small_card.main(flags) == 0
    row = json.loads((tmp_path / "numbers.json").read_text())["rows"]["full"]
    assert row["steps"] == 11 and row["MiB more than at step 10"] >= 0
