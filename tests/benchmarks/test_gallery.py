"""`benchmarks.gallery` and `benchmarks.grouping`: what they make and count."""

import itertools
import json

import numpy as np
import pytest
import torch

from benchmarks import gallery, grouping
from benchmarks.unknown_identities import Features, limit_gallery, right_of_accepted, together


def test_clusters_are_of_20_images(monkeypatch):
    monkeypatch.setattr(gallery, "AT_ONCE", 100)
    vectors = np.concatenate([*gallery.make_vectors("clusters", 240)])
    assert vectors.shape == (240, 384) and np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    cosines, identities = vectors @ vectors.T, np.arange(240) // 20
    same = identities[:, None] == identities
    assert cosines[same & ~np.eye(240, dtype=bool)].mean() == pytest.approx(0.67, abs=0.02)
    assert abs(cosines[~same].mean()) < 0.02
    queries = gallery.make_queries("clusters", 240, 12)
    assert (queries @ vectors.T).max() < 0.9  # no image is its own query
    assert (identities[(queries @ vectors.T).argmax(1)] == np.linspace(0, 239, 12).astype(int) // 20).all()


def test_rows_that_are_there_are_not_measured_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gallery, "in_fresh_process", lambda function, *arguments: function(*arguments))
    command = ["--sizes=300", "--vectors=clusters", "--engines", "flat", "hnsw", "--queries=20", "--repeats=2"]
    assert gallery.main([*command, f"--json={tmp_path / 'rows.json'}"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {name.split(", ")[2] for name in rows} == {"numpy product", "flat", "hnsw"}
    assert all(row["recall@1"] == 1 for row in rows.values())
    monkeypatch.setattr(gallery, "measure_size", None)
    capsys.readouterr()
    assert gallery.main([*command, f"--json={tmp_path / 'rows.json'}"]) == 0
    assert "`clusters, 300, flat`" in capsys.readouterr().out


def test_adjusted_rand_index_by_counting_pairs():
    random = np.random.default_rng(0)
    for _ in range(10):
        one, other = random.integers(0, 4, 30), random.integers(0, 6, 30)
        pairs = [(one[i] == one[j], other[i] == other[j]) for i, j in itertools.combinations(range(30), 2)]
        both, a, b = (sum(each) for each in ([x and y for x, y in pairs], *zip(*pairs, strict=True)))
        neither = len(pairs) - a - b + both
        only_a, only_b = a - both, b - both  # the form of pair counts of Steinley 2004
        expected = 2 * (both * neither - only_a * only_b)
        expected /= (both + only_a) * (only_a + neither) + (both + only_b) * (only_b + neither)
        assert grouping.adjusted_rand_index(one, other) == pytest.approx(expected)
    assert grouping.adjusted_rand_index([0, 0, 1], [5, 5, 2]) == 1


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    query_ids, gallery_ids = np.repeat(np.arange(14), 4), np.repeat(np.arange(12), 5)
    centers = random.normal(size=(14, 8))
    query, images = (centers[ids] + 0.5 * random.normal(size=(len(ids), 8)) for ids in (query_ids, gallery_ids))
    cameras = [random.integers(0, 3, len(ids)) for ids in (query_ids, gallery_ids)]
    return Features(query, images, query_ids, gallery_ids, *cameras, "euclidean")


def test_gallery_of_few_images_an_identity(features):
    limited = limit_gallery(features, 2)
    assert [(limited.gallery_ids == identity).sum() for identity in range(12)] == [2] * 12
    rows = {tuple(row) for row in features.gallery}
    assert all(tuple(row) in rows for row in limited.gallery) and len(limited.gallery_cameras) == 24


def test_queries_of_an_identity_together(features):
    probe_ids, distances = torch.from_numpy(features.query_ids), features.distances()
    joined = together(distances, probe_ids)
    assert joined.distances.shape == (14, 12) and joined.own.tolist() == [*range(12), -1, -1]
    for identity, other in itertools.product(range(14), range(12)):
        found = [value for value in distances.distances[probe_ids == identity, other].tolist() if np.isfinite(value)]
        assert joined.distances[identity, other].item() == pytest.approx(np.mean(found), rel=1e-5)
    right = accepted = 0
    for row, own in zip(distances.distances.tolist(), distances.own.tolist(), strict=True):
        if own >= 0 and np.isfinite(row[own]) and min(row) <= 1.5:
            accepted, right = accepted + 1, right + (row[own] == min(row))
    assert 0 < right < accepted
    assert right_of_accepted(distances, 1.5) == pytest.approx(right / accepted)


def test_grouping_of_clear_identities(features):
    row = grouping.split_indices(features, [5], 0)["5"]
    assert row["images"] == 20 and row["best distance"] > 80 and 0 < row["P(same) = 0.5"] <= 100
