"""The benchmarks of explanations: what they delete, and that each prints its table."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import explain, faithfulness, pair_faithfulness
from dual_cross_attention import load_model


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    for name in ("1_a", "1_b", "1_c", "2_a", "2_b", "3_a"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 20, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_pairs_are_the_first_and_last_of_an_identity():
    names = ["x/1_a.png", "x/1_b.png", "y/1_c.png", "y/2_a.png"]
    assert pair_faithfulness.same_identity(names, by_name=True) == [("x/1_a.png", "y/1_c.png")]
    found = pair_faithfulness.same_identity(names, by_name=False)
    assert found == [("x/1_a.png", "x/1_b.png"), ("y/1_c.png", "y/2_a.png")]


def test_similarity_deletes_the_best_matches_in_one_image_at_a_time(make_model, photos):
    loaded = load_model(make_model("reid"), device="cpu")  # 32 x 16 pixels, patches of 8: 4 x 2
    images = torch.stack([loaded.transform(photos / name) for name in ("1_a.png", "1_c.png")])
    scores = np.zeros((8, 8))
    order = [(0, 3), (5, 1), (2, 2), (7, 0)]  # the best four
    for rank, (one, other) in enumerate(order):
        scores[one, other] = 10 - rank
    found = pair_faithfulness.similarity(loaded, images, scores, (4, 2))
    values = []
    for side in range(2):
        for step in range(10):
            changed = images.clone()
            for match in order[: round(step / 9 * 4)]:
                row, column = divmod(match[side], 2)
                changed[side, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
            one, other = loaded.model.embed(changed).double()
            values.append(float(one @ other / (one.norm() * other.norm())))
    assert found == pytest.approx(np.mean(values), abs=1e-5)


def test_tables(make_model, photos, tmp_path, capsys):
    classifier, numbers = str(make_model()), tmp_path / "numbers.json"
    assert faithfulness.main([classifier, str(photos), "--images=3", "--device=cpu", f"--json={numbers}"]) == 0
    assert "rollout × GLCA's attention" in capsys.readouterr().out
    rows = json.loads(numbers.read_text())["rows"]
    assert len(rows) == 4 and "deletion gain, %" in rows["gradient × rollout"]
    assert explain.main([classifier, str(photos), "--images=2", "--figures=1", "--repeats=1", "--device=cpu"]) == 0
    assert "× predict" in capsys.readouterr().out
    assert pair_faithfulness.main([classifier, str(photos), "--identity=name", "--device=cpu"]) == 0
    assert "2 pairs" in capsys.readouterr().out
