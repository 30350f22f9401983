"""`benchmarks.unknown_identities`: its numbers, counted again query by query."""

import json
import math
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.unknown_identities import Features, main, split_rates


@pytest.fixture
def features(tmp_path):
    """40 identities around their centers, of which the queries have two more, under three cameras."""
    random = np.random.default_rng(0)
    query_ids, gallery_ids = np.repeat(np.arange(42), 6), np.repeat(np.arange(40), 5)
    centers = random.normal(size=(42, 8))
    query, gallery = (
        (centers[ids] + 0.7 * random.normal(size=(len(ids), 8))).astype(np.float32) for ids in (query_ids, gallery_ids)
    )
    cameras = [random.integers(0, 3, len(ids)) for ids in (query_ids, gallery_ids)]
    found = Features(query, gallery, query_ids, gallery_ids, *cameras, "euclidean")
    found.save(tmp_path / "features.npz")
    return found


def test_a_split_is_counted_again(features):
    seed, rate = 3, 0.1
    distances = features.distances()
    row = split_rates(distances, torch.from_numpy(features.query_ids), [rate], seed)["10 %"]
    order = torch.randperm(42, generator=torch.Generator().manual_seed(seed)).tolist()
    fitted_on, reported = set(order[:21]), set(order[21:])
    enrolled = set(order[21:31])
    enrolled_there = enrolled & set(features.gallery_ids.tolist())
    assert not fitted_on & reported and row["enrolled identities"] == len(enrolled_there)
    nonmated, mated = [], []
    for q, (identity, camera) in enumerate(zip(features.query_ids, features.query_cameras, strict=True)):
        if identity not in reported:
            continue
        nearest = {}
        for g, (other, other_camera) in enumerate(zip(features.gallery_ids, features.gallery_cameras, strict=True)):
            if other in enrolled and (other, other_camera) != (identity, camera):
                value = math.dist(features.query[q].tolist(), features.gallery[g].tolist())
                nearest[other] = min(value, nearest.get(other, math.inf))
        if identity not in enrolled_there:
            nonmated.append(min(nearest.values()))
        elif identity in nearest:
            is_first = min(nearest, key=nearest.get) == identity
            mated.append(nearest[identity] if is_first else math.inf)
    accepted = math.floor(rate * len(nonmated))
    threshold = sum(sorted(nonmated)[accepted - 1 : accepted + 1]) / 2
    assert row["FNIR % at this FPIR"] == pytest.approx(100 * np.mean(np.array(mated) > threshold), abs=1e-6)
    assert row["rank-1 %"] == pytest.approx(100 * np.mean(np.isfinite(mated)))
    assert 0 < row["FPIR % of the fitted threshold"] < 30


def test_the_fitted_threshold_is_of_other_identities(features):
    """Queries of the reported half come nearer, and nothing notices."""
    probe_ids, distances = torch.from_numpy(features.query_ids), features.distances()
    order = torch.randperm(42, generator=torch.Generator().manual_seed(3))
    nearer = distances.distances.clone()
    nearer[torch.isin(probe_ids, order[21:])] *= 0.01
    moved = distances.__class__(nearer, distances.identities, distances.own)
    row = split_rates(moved, probe_ids, [0.1], 3)["10 %"]
    assert row["FPIR % of the fitted threshold"] == 100


def test_the_table_is_of_features_that_are_there(features, tmp_path, capsys):
    result = tmp_path / "result.json"
    arguments = [f"--features={tmp_path / 'features.npz'}", "--splits=3", "--fpir", "0.1", "0.2", f"--json={result}"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "3 splits of 40 gallery identities, 252 queries" in printed and "| `10 %` |" in printed
    content = json.loads(result.read_text())
    values = [split["20 %"]["FNIR % at this FPIR"] for split in content["splits"]]
    assert content["rows"]["20 %"]["FNIR % at this FPIR"] == f"{mean(values):.1f} ± {stdev(values):.1f}"
    assert content["rows"]["20 %"]["FNIR % at this FPIR"] in printed
    assert main([*arguments, "--cross_camera_only"]) == 0
    across = json.loads(result.read_text())["splits"]
    assert "across cameras only" in capsys.readouterr().out
    gained = [
        new["20 %"]["rank-1 %"] - old["20 %"]["rank-1 %"] for new, old in zip(across, content["splits"], strict=True)
    ]
    assert min(gained) >= 0 and max(gained) > 0  # the same mated queries among fewer images of others


def test_features_of_a_model_are_computed_once(make_model, people, tmp_path, capsys):
    path = make_model("reid", labels=["dan", "zoe"], dataset="folder", data_root=f"{people}")
    cache = tmp_path / "features.npz"
    arguments = [f"--features={cache}", "--splits=1", "--fpir=1", "--device=cpu"]
    with pytest.raises(SystemExit):
        main(arguments)
    with pytest.raises(Exception):  # noqa: B017 - two identities are too few to split, once dan is left out
        main([f"{path}", *arguments])
    with np.load(cache) as file:
        assert sorted({*file["query_ids"].tolist()}) == [0, 2]  # bob and eva
        assert file["query"].shape == (4, 96) and file["gallery"].shape == (8, 96)


def test_leave_one_out_without_cameras(make_model, tmp_path, capsys):
    """Each image is a query and in the gallery, where it does not find its own file."""
    images = np.random.default_rng(0)
    for name in ("ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal"):
        (tmp_path / "data/test" / name).mkdir(parents=True)
        for number in range(3):
            pixels = images.integers(0, 256, (32, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data/test" / name / f"{name}{number}.png")
    path = make_model("reid", labels=["zoe", "yan"], dataset="folder", data_root=f"{tmp_path / 'data'}")
    cache = tmp_path / "features.npz"
    arguments = [f"--features={cache}", "--splits=2", "--fpir=0.5", "--device=cpu"]
    assert main([f"{path}", *arguments]) == 0
    assert "8 gallery identities, 24 queries" in (printed := capsys.readouterr().out) and "no cameras" in printed
    found = Features.load(cache)
    assert found.query_cameras is None and np.array_equal(found.query, found.gallery)
    own = found.distances().own_distances.numpy()
    for place, identity in enumerate(found.query_ids):
        others = [g for g in np.flatnonzero(found.gallery_ids == identity) if g != place]
        expected = min(math.dist(found.query[place].tolist(), found.gallery[g].tolist()) for g in others)
        assert own[place] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(SystemExit):
        main([*arguments, "--cross_camera_only"])
