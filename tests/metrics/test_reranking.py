"""k-reciprocal re-ranking against its definition, with dense matrices and Python sets in float64."""

import math

import numpy as np
import pytest
import torch

from dual_cross_attention.errors import InputError
from dual_cross_attention.metrics import rerank
from dual_cross_attention.metrics.reranking import KReciprocalDistances


def by_definition(query, gallery, k1, k2, lambda_value, distance):
    """(Q, G) float64."""
    features = np.concatenate([query.double().numpy(), gallery.double().numpy()])
    n, queries = len(features), len(query)
    if distance == "cosine":
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
        d = 1 - features @ features.T
    else:
        d = ((features[:, None] - features[None]) ** 2).sum(-1)
    order = [sorted(range(n), key=lambda g, p=p: (g != p, np.float32(round(d[p, g], 12)), g)) for p in range(n)]
    d = d / np.maximum(d.max(axis=1, keepdims=True), 1e-300)

    def reciprocal(p, k):
        return {g for g in order[p][: k + 1] if p in order[g][: k + 1]}

    encodings = np.zeros((n, n))
    for p in range(n):
        neighbors = reciprocal(p, k1)
        expanded = set(neighbors)
        for q in neighbors:
            theirs = reciprocal(q, int(np.around(k1 / 2)))
            if 3 * len(neighbors & theirs) > 2 * len(theirs):
                expanded |= theirs
        for g in expanded:
            encodings[p, g] = np.exp(-d[p, g])
        encodings[p] /= encodings[p].sum()
    encodings = np.stack([np.mean([encodings[g] for g in order[p][:k2]], axis=0) for p in range(n)])

    jaccard = np.empty((queries, n - queries))
    for p in range(queries):
        for g in range(queries, n):
            shared = np.minimum(encodings[p], encodings[g]).sum()
            jaccard[p, g - queries] = 1 - shared / np.maximum(encodings[p], encodings[g]).sum()
    return (1 - lambda_value) * jaccard + lambda_value * d[:queries, queries:]


def clusters(queries=7, gallery=33, dimensions=6, repeated=True):
    """Loose groups, so that neighborhoods overlap partly; a few gallery images twice, so that there are ties."""
    random = torch.Generator().manual_seed(0)
    centers = torch.randn(5, dimensions, generator=random)
    features = centers[torch.arange(queries + gallery) % 5]
    features = features + 0.7 * torch.randn(features.shape, generator=random)
    if repeated:
        features[-4:] = features[queries : queries + 4]
    return features[:queries], features[queries:]


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    ("k1", "k2", "lambda_value"),
    [(20, 6, 0.3), (5, 3, 0.3), (6, 1, 0.0), (1, 2, 0.5), (3, 8, 1.0), (100, 6, 0.3), (100, 100, 0.3)],
)
def test_equals_the_definition(distance, k1, k2, lambda_value):
    query, gallery = clusters()
    expected = by_definition(query, gallery, k1, k2, lambda_value, distance)
    result = rerank(query, gallery, k1, k2, lambda_value, distance)
    assert result.dtype == torch.float32 and result.shape == (7, 33)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6, rtol=0)


def test_the_default_arguments_are_the_papers():
    query, gallery = clusters()
    assert torch.equal(rerank(query, gallery), rerank(query, gallery, 20, 6, 0.3, "euclidean"))
    assert (rerank(query, gallery) - rerank(query, gallery, 5, 3)).abs().max() > 0.01


def test_expansion_is_strict_at_two_thirds():
    """Two of three neighbors shared are not enough: the case on which paper and code differ must occur here."""
    query, gallery = clusters(repeated=False)
    strict = by_definition(query, gallery, 4, 1, 0.0, "euclidean")
    np.testing.assert_allclose(rerank(query, gallery, 4, 1, 0.0).numpy(), strict, atol=1e-6, rtol=0)
    features = torch.cat([query, gallery]).double()
    order = torch.cdist(features, features).argsort(1).tolist()

    def reciprocal(p, k):
        return {g for g in order[p][: k + 1] if p in order[g][: k + 1]}

    overlaps = [(reciprocal(p, 4), reciprocal(q, 2)) for p in range(40) for q in reciprocal(p, 4)]
    assert any(3 * len(p & q) == 2 * len(q) for p, q in overlaps)


@pytest.mark.parametrize("block_size", [1, 150, 10**6])
def test_blocks_are_rows_of_the_matrix(block_size):
    query, gallery = clusters()
    whole = rerank(query, gallery)
    torch.testing.assert_close(rerank(query, gallery, block_size=block_size), whole, atol=1e-7, rtol=0)
    distances = KReciprocalDistances(query, gallery, block_size=block_size)
    assert torch.equal(distances(slice(2, 5)), whole[2:5])


def test_equal_features_are_as_near_as_can_be():
    """More equal images than neighbors, and all images equal: no 0 / 0, no encoding without its own image."""
    query, gallery = clusters()
    gallery[:] = gallery[0]
    expected = by_definition(query, gallery, 4, 2, 0.3, "euclidean")
    np.testing.assert_allclose(rerank(query, gallery, 4, 2).numpy(), expected, atol=1e-6, rtol=0)
    assert rerank(torch.ones(2, 3), torch.ones(4, 3)).abs().max() < 1e-12


@pytest.mark.parametrize(
    "wrong",
    [
        {"k1": 0},
        {"k1": 2.5},
        {"k2": 0},
        {"k2": "6"},
        {"lambda_value": 1.5},
        {"lambda_value": math.nan},
        {"lambda_value": "0.3"},
        {"block_size": 0},
        {"distance": "l1"},
        {"device": "gpu"},
    ],
)
def test_arguments_out_of_range(wrong):
    with pytest.raises(InputError, match="expected"):
        rerank(*clusters(), **wrong)


def test_bad_rows_are_named_by_their_own_set():
    query, gallery = clusters()
    gallery[4, 0] = torch.nan
    with pytest.raises(InputError, match=r"gallery: .* 1 of 33 rows, first \[4\]"):
        rerank(query, gallery)
