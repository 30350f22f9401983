"""`benchmarks.unknown` on a tiny model: its numbers, counted again image by image."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.unknown import auroc, main
from dual_cross_attention import load_model
from dual_cross_attention.inference.halves import first_half


def test_auroc_counts_pairs():
    random = torch.Generator().manual_seed(0)
    known, unknown = (torch.randint(0, 6, (size,), generator=random).double() + up for size, up in ((40, 1), (30, 0)))
    pairs = [(k > u) + 0.5 * (k == u) for k in known.tolist() for u in unknown.tolist()]
    assert auroc(known, unknown) == pytest.approx(np.mean(pairs)) != 0.5


def test_tables(make_model, images, tmp_path, capsys):
    (tmp_path / "unknown").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / "unknown" / f"{number}.png")
    known = shutil.copytree(images / "val", tmp_path / "known")
    path = make_model(labels=["ant", "bee", "cat"])
    result = tmp_path / "result.json"
    arguments = [path, "--known", known, "--unknown", tmp_path / "unknown", "--keep=0.6", "--device=cpu"]
    assert main([str(word) for word in [*arguments, f"--json={result}"]]) == 0
    printed = capsys.readouterr().out
    assert "| score |" in printed and "`agreement, SA + GLCA`" in printed and "10 unknown ones" in printed
    content = json.loads(result.read_text())
    assert len(content["rows"]) == 3 + 3 + 1 and len(content["calibration"]) == 3

    model = load_model(path, device="cpu")
    files = sorted(known.rglob("*.png"))
    first = first_half([f"{file.parent.name}/{file.name}" for file in files]).tolist()
    reported = [file for file, is_first in zip(files, first, strict=True) if not is_first]
    predicted = list(model.predict(reported))
    right = np.mean([p.label == file.parent.name for p, file in zip(predicted, reported, strict=True)])
    assert content["calibration"]["SA + GLCA"]["top-1 %"] == pytest.approx(100 * right)

    # The overlap of SA and GLCA, at their fitted temperatures.
    temperatures = {name: content["calibration"][name]["temperature"] for name in ("SA", "GLCA")}

    def overlap(paths):
        logits = model.model.predict_logits(torch.stack([model.transform(file) for file in paths]))
        p, q = (logits[name].double() / temperatures[name.upper()] for name in ("sa", "glca"))
        return (p.softmax(-1) * q.softmax(-1)).sqrt().sum(-1).numpy()

    inside, outside = overlap(reported), overlap(sorted((tmp_path / "unknown").iterdir()))
    row = content["rows"]["agreement, SA + GLCA"]
    assert row["AUROC %"] == pytest.approx(100 * np.mean(inside[:, None] > outside))
    kept = np.sort(inside)[::-1][int(np.ceil(0.6 * len(inside))) - 1]
    below = np.sort(inside)[::-1][int(np.ceil(0.6 * len(inside)))]
    rate = row["unknown called known at 60 % kept, %"]
    assert rate == pytest.approx(100 * np.mean(outside >= (kept + below) / 2))
