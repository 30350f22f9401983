"""Runs become rows of a table."""

import csv
import sys
from pathlib import Path

from benchmarks import collect

RUNS = Path(__file__).parent.parent / "fixtures" / "format_1"


def table(monkeypatch, path: Path, *runs: Path) -> dict[str, dict[str, str]]:
    monkeypatch.setattr(sys, "argv", ["collect", *map(str, runs), "--csv", str(path)])
    assert collect.main() == 0
    with path.open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_rows(monkeypatch, tmp_path, capsys):
    path = tmp_path / "folder" / "runs.csv"
    (row,) = table(monkeypatch, path, RUNS / "fgvc-finished", RUNS / "fgvc-interrupted").values()
    assert "fgvc-interrupted: not ended" in capsys.readouterr().err
    assert (row["run"], row["ablation"], row["epochs"], row["lr"], row["img_size"]) == (
        "fgvc-finished",
        "full",
        "3",
        "0.002",
        "64x64",
    )
    assert (row["val/top1"], row["val/mAP"], row["train_images"]) == ("19.8", "", "2500")
    assert "backbone_kwargs" in row["other"] and "label_smoothing" not in row["other"]
    both = table(monkeypatch, path, RUNS / "reid-finished")
    assert both["fgvc-finished"] == row and both["reid-finished"]["val/mAP"] == "3.977"
    assert table(monkeypatch, path, RUNS / "fgvc-finished") == both
