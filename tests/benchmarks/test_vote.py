"""`benchmarks.vote` on two tiny models: accuracies counted again image by image."""

import json

import numpy as np
import pytest
import torch

from benchmarks.vote import main
from dual_cross_attention import load_model
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.halves import first_half


def test_accuracy_of_each_vote(make_model, images, tmp_path, capsys):
    paths = [make_model(labels=["ant", "bee", "cat"], seed=seed) for seed in (0, 1)]
    result = tmp_path / "result.json"
    data = ["--dataset=folder", f"--data_root={images}", "--device=cpu"]
    assert main([*map(str, paths), *data, f"--json={result}"]) == 0
    rows = json.loads(result.read_text())["rows"]
    files = sorted((images / "val").rglob("*.png"))
    first = first_half([f"{file.parent.name}/{file.name}" for file in files]).tolist()
    reported = [file for file, is_first in zip(files, first, strict=True) if not is_first]
    expected = {"SA": [], "GLCA": [], "mean of softmax": [], "mean of log-softmax": []}
    for path in paths:
        model = load_model(path, device="cpu")
        labels = [model.labels.index(file.parent.name) for file in reported]
        logits = model.model.predict_logits(torch.stack([model.transform(file) for file in reported]))
        sa, glca = (logits[name].double().softmax(-1) for name in ("sa", "glca"))
        for vote, scores in zip(expected, (sa, glca, sa + glca, sa * glca), strict=True):
            right = [row.index(max(row)) == label for row, label in zip(scores.tolist(), labels, strict=True)]
            expected[vote].append(100 * np.mean(right))
    for vote, accuracies in expected.items():
        assert rows[vote]["top-1 %"] == f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}"
        if vote != "mean of softmax":
            difference = np.mean(accuracies) - np.mean(expected["mean of softmax"])
            assert float(rows[vote]["− mean"].split()[0]) == pytest.approx(difference, abs=0.006)
    assert rows["mean of softmax"]["− mean"] == ""
    assert "| mean of softmax" in capsys.readouterr().out.replace("`", "")


def test_plain_backbone_is_refused(make_model, images):
    path = make_model(labels=["ant", "bee", "cat"], ablation="sa_only")
    with pytest.raises(InputError, match="GLCA"):
        main([str(path), "--dataset=folder", f"--data_root={images}", "--device=cpu"])
