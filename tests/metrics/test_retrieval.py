"""mAP, CMC and rankings against the protocol written down in plain Python."""

import math

import numpy as np
import pytest
import torch

from dual_cross_attention.errors import InputError
from dual_cross_attention.metrics import RetrievalMetrics, rank_gallery, rerank, retrieval_metrics
from dual_cross_attention.metrics import distances as distances_module
from dual_cross_attention.metrics.distances import Distances


def literal_distance(query, gallery, distance):
    """What is ranked: the squared euclidean distance or 1 − cos, in float64, equal if equal as float32."""
    if distance == "euclidean":
        value = sum((q - g) ** 2 for q, g in zip(query, gallery, strict=True))
    else:
        norms = math.sqrt(sum(q * q for q in query) * sum(g * g for g in gallery))
        value = 1 - sum(q * g for q, g in zip(query, gallery, strict=True)) / norms
    return float(np.float32(max(0.0, round(value, 12))))


def literal_rankings(table, query_ids, gallery_ids, query_cameras, gallery_cameras):
    """For every query the gallery indices it may find, nearest first; table[q][g] are distances."""
    rankings = []
    for q, row in enumerate(table):
        seen = []
        for g, value in enumerate(row):
            own = gallery_ids[g] == query_ids[q] and gallery_cameras[g] == query_cameras[q]
            if gallery_ids[g] >= 0 and not own:
                seen.append((value, g))
        rankings.append([g for _, g in sorted(seen)])
    return rankings


def literal_metrics(rankings, query_ids, gallery_ids, max_rank):
    """(mAP, cmc, average precisions, number of valid queries)."""
    average_precisions, cmc, valid = [], [0] * max_rank, 0
    for q, ranking in enumerate(rankings):
        precisions, first = [], None
        for rank, g in enumerate(ranking, start=1):
            if gallery_ids[g] == query_ids[q]:
                precisions.append((len(precisions) + 1) / rank)
                first = first or rank
        average_precisions.append(sum(precisions) / len(precisions) if precisions else math.nan)
        if precisions:
            valid += 1
            for k in range(1, max_rank + 1):
                cmc[k - 1] += first <= k
    mean = sum(ap for ap in average_precisions if not math.isnan(ap)) / valid
    return mean, [hits / valid for hits in cmc], average_precisions, valid


def check(result, rankings, query_ids, gallery_ids, max_rank):
    """Counts are equal; averages up to the order of a float64 sum, far below what one swapped pair would change."""
    mean, cmc, average_precisions, valid = literal_metrics(rankings, query_ids, gallery_ids, max_rank)
    assert isinstance(result, RetrievalMetrics) and isinstance(result.mAP, float)
    assert result.num_valid_queries == valid
    assert result.cmc.tolist() == cmc
    assert result.average_precisions.tolist() == pytest.approx(average_precisions, abs=1e-14, nan_ok=True)
    assert result.mAP == pytest.approx(mean, abs=1e-14)


@pytest.fixture
def tied():
    """Small integers and repeated rows (many equal distances), junk, and queries of every kind."""
    random = torch.Generator().manual_seed(0)
    query = torch.randint(-1, 2, (14, 4), generator=random).float()
    gallery = torch.randint(-1, 2, (60, 4), generator=random).float()
    for features in (query, gallery):
        features[(features == 0).all(1)] = 1.0  # cosine needs a direction
    gallery[40:] = gallery[:20]
    query_ids = torch.randint(0, 5, (14,), generator=random)
    gallery_ids = torch.randint(-1, 5, (60,), generator=random)
    query_cameras = torch.randint(0, 3, (14,), generator=random)
    gallery_cameras = torch.randint(0, 3, (60,), generator=random)
    query_ids[2] = 99  # not there
    query_ids[5], query_cameras[5], gallery_ids[7], gallery_cameras[7] = 50, 1, 50, 1  # under its own camera only
    query_ids[9] = -1  # junk has no matches
    return query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras


def literal_order(data, distance):
    query, gallery, *labels = (part.tolist() for part in data)
    table = [[literal_distance(q, g, distance) for g in gallery] for q in query]
    return table, literal_rankings(table, labels[0], labels[1], labels[2], labels[3])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("block_size", [1, 200, 2**23])
@pytest.mark.parametrize("max_rank", [1, 7, 80])
def test_equals_the_definition(tied, distance, block_size, max_rank):
    table, rankings = literal_order(tied, distance)
    assert any(len(set(row)) < len(row) / 2 for row in table), "no ties: this would prove little"
    result = retrieval_metrics(*tied, distance=distance, max_rank=max_rank, block_size=block_size)
    check(result, rankings, tied[2].tolist(), tied[3].tolist(), max_rank)
    assert result.average_precisions.isnan().nonzero()[:, 0].tolist() == [2, 5, 9]
    assert result.rank(max_rank) == result.cmc[-1]


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("block_size", [1, 200, 2**23])
def test_rankings_are_the_literal_ones(tied, distance, block_size):
    table, rankings = literal_order(tied, distance)
    found = list(rank_gallery(*tied, distance=distance, block_size=block_size))
    assert [indices.tolist() for indices, _ in found] == rankings
    for row, (indices, distances) in zip(table, found, strict=True):
        expected = [row[g] ** 0.5 if distance == "euclidean" else row[g] for g in indices.tolist()]
        assert distances.tolist() == pytest.approx(expected, rel=1e-6)


def test_lists_arrays_and_other_types(tied):
    expected = retrieval_metrics(*tied)
    query, gallery, *labels = tied
    given = [
        query.numpy(),
        gallery.to(torch.int64),
        labels[0].tolist(),
        labels[1].numpy().astype(np.int16),
        *labels[2:],
    ]
    result = retrieval_metrics(*given)
    assert result.mAP == expected.mAP and torch.equal(result.cmc, expected.cmc)


@pytest.mark.parametrize("rerank", [False, True])
def test_whatever_holds_the_same_numbers_gives_the_same_metrics(tied, rerank):
    """Lists of tensors or arrays, reversed views, the other byte order, 8-bit floats: values of `tied` are exact."""
    expected = retrieval_metrics(*tied, rerank=rerank)
    query, gallery, *labels = tied
    array = query.numpy()
    for given in (
        list(query),
        tuple(array),
        array.tolist(),
        np.ascontiguousarray(array[::-1])[::-1],
        array.astype(">f8"),
        query.to(torch.float8_e4m3fn),
        query.clone().requires_grad_(),
    ):
        result = retrieval_metrics(given, gallery, *labels, rerank=rerank)
        assert torch.equal(result.average_precisions.nan_to_num(), expected.average_precisions.nan_to_num())
        assert torch.equal(result.cmc, expected.cmc)


def real_data(queries=20, gallery=300, dimensions=24):
    random = torch.Generator().manual_seed(1)
    ids = torch.arange(8).repeat(100)
    return (
        torch.randn(queries, dimensions, generator=random),
        torch.randn(gallery, dimensions, generator=random),
        ids[:queries],
        ids[:gallery],
        torch.zeros(queries, dtype=torch.int64),
        torch.randint(0, 3, (gallery,), generator=random),
    )


def test_the_block_size_does_not_matter():
    whole = retrieval_metrics(*real_data())
    order = [indices for indices, _ in rank_gallery(*real_data())]
    for block_size in (1, 601, 2000):
        blocks = retrieval_metrics(*real_data(), block_size=block_size)
        assert torch.equal(blocks.cmc, whole.cmc)
        torch.testing.assert_close(blocks.average_precisions, whole.average_precisions, atol=1e-14, rtol=0)
        found = rank_gallery(*real_data(), block_size=block_size)
        assert all(torch.equal(mine, theirs) for (mine, _), theirs in zip(found, order, strict=True))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_duplicates_tie_in_spite_of_cancellation(distance, monkeypatch):
    """Far from the origin a product's noise would order equal rows; here the index does, whatever the chunks."""
    query, gallery, *_ = real_data()
    query, gallery = query + 3000, gallery + 3000
    gallery[150:] = gallery[:150].flip(0)
    labels = [torch.zeros(20, dtype=torch.int64), torch.arange(300), [0] * 20, [1] * 300]  # nobody is hidden
    monkeypatch.setattr(distances_module, "CHUNK", 24 * 37)  # 37 gallery images, the last time 4
    exact = (query[:, None].double() - gallery.double()).square().sum(-1)
    for row, (indices, distances) in enumerate(rank_gallery(query, gallery, *labels, distance=distance)):
        by_index = torch.empty(300).index_copy_(0, indices, distances)
        assert torch.equal(by_index[150:], by_index[:150].flip(0))
        tied = distances[1:] == distances[:-1]
        assert tied.sum() >= 150 and (indices[1:] > indices[:-1])[tied].all()
        if distance == "euclidean":
            torch.testing.assert_close(by_index.double() ** 2, exact[row], rtol=1e-6, atol=0)


def test_the_distance_to_itself_is_zero():
    features = torch.randn(50, 24) * 100 + 5000
    for distance in ("euclidean", "cosine"):
        assert (Distances(features, features, distance)(slice(0, 50)).diagonal() == 0).all()


def test_all_of_the_gallery_matches():
    """As many matches as gallery images: perfect, whatever the order."""
    query, gallery = torch.randn(3, 5), torch.randn(40, 5)
    result = retrieval_metrics(query, gallery, [7] * 3, [7] * 40, [0] * 3, [1] * 40)
    assert result.mAP == 1.0 and result.cmc.tolist() == [1.0] * 50


def test_ranks_by_reranked_distances(tied):
    table = rerank(*tied[:2]).tolist()
    rankings = literal_rankings(table, *(part.tolist() for part in tied[2:]))
    for block_size in (1, 200, 2**23):
        result = retrieval_metrics(*tied, rerank=True, block_size=block_size)
        check(result, rankings, tied[2].tolist(), tied[3].tolist(), 50)
        found = list(rank_gallery(*tied, rerank=True, block_size=block_size))
        assert [indices.tolist() for indices, _ in found] == rankings
        assert found[0][1].tolist() == [table[0][g] for g in rankings[0]]


def test_progress_wraps_the_blocks(tied):
    seen = []

    def progress(blocks):
        seen.append(len(blocks))
        return blocks

    retrieval_metrics(*tied, block_size=120, progress=progress)
    assert seen == [7]


def replaced(tied, **changes):
    names = ("query", "gallery", "query_ids", "gallery_ids", "query_cameras", "gallery_cameras")
    return {**dict(zip(names, tied, strict=True)), **changes}


def with_bad_rows(features, value):
    features = features.clone()
    features[[3, 8], 1] = value
    return features


@pytest.mark.parametrize("function", [retrieval_metrics, rank_gallery])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": torch.zeros(14)}, r"query: .*got torch.float32 of shape \(14,\)"),
        ({"gallery": torch.zeros(0, 4), "gallery_ids": []}, r"gallery: .*at least one .*\(0, 4\)"),
        ({"query": torch.ones(14, 5)}, "query 5, gallery 4"),
        ({"query_ids": [1, 2]}, r"query_ids: expected 14.*\(2,\)"),
        ({"gallery_cameras": torch.zeros(61, dtype=torch.int64)}, r"gallery_cameras: expected 60.*\(61,\)"),
        ({"query_cameras": torch.zeros(14)}, "query_cameras: expected integers, got torch.float32"),
        ({"query_cameras": np.zeros(14)}, r"query_cameras: expected integers, got torch.float64.*astype\(int\)"),
        ({"gallery_ids": ["a"] * 60}, "gallery_ids: expected integers, got list.*np.unique"),
        ({"gallery_ids": np.array(["a"] * 60)}, "gallery_ids: expected integers, got ndarray.*np.unique"),
        ({"query_ids": [None] * 14}, "query_ids: expected integers, got list"),
        ({"query_ids": [2**70] * 14}, "query_ids: expected integers, got list"),
        ({"query_ids": np.full(14, 2**64 - 1, dtype=np.uint64)}, r"query_ids: expected integers below 2\^63"),
        ({"query_ids": [[1]] * 14}, r"query_ids: expected 14.*\(14, 1\)"),
        ({"query": [[1.0, 2.0], [3.0]]}, "query: expected numbers .*got list"),
        ({"query": [["a"] * 4] * 14}, "query: expected numbers .*got list"),
        ({"query": None}, "query: expected numbers, got NoneType"),
        ({"gallery": {"features": 1}}, "gallery: expected numbers, got dict"),
        (
            {"gallery": [torch.zeros(30, 4)] * 2},
            r"gallery: expected one tensor, got 2 of .*torch\.cat\(gallery\)",
        ),
        ({"gallery": torch.ones(60, 4).to_sparse()}, "gallery: expected a dense tensor"),
        ({"query": torch.ones(4)}, r"query: .*shape \(4,\): one image is query\[None\]"),
        ({"device": "gpu"}, "device: expected a name"),
        ({"block_size": 2.5}, "block_size: expected at least 1, got 2.5"),
        ({"distance": "manhattan"}, "'euclidean' or 'cosine', got 'manhattan'"),
        ({"block_size": 0}, "block_size: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(tied, function, changes, message):
    with pytest.raises(InputError, match=message):
        function(**replaced(tied, **changes))


@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e25])
def test_features_that_are_not_finite_are_named(tied, value, rerank):
    with pytest.raises(InputError, match=r"gallery: .*finite.* 2 of 60 rows.* \[3, 8\]"):
        retrieval_metrics(**replaced(tied, gallery=with_bad_rows(tied[1], value)), rerank=rerank)


def test_cosine_needs_a_direction(tied):
    query = tied[0].clone()
    query[[1, 4]] = 0.0
    with pytest.raises(InputError, match=r"query: .*direction.* 2 of 14 rows.* \[1, 4\]"):
        retrieval_metrics(**replaced(tied, query=query), distance="cosine")


def test_no_query_with_a_match(tied):
    """Said before anything is computed, with the reason."""
    ids, cameras = torch.full((14,), 99), torch.ones(14, dtype=torch.int64)
    ids[:4] = 50  # there, under camera 1 only
    ids[4] = -1
    with pytest.raises(InputError, match=r"14 queries, 4 .* own camera.* 10 "):
        retrieval_metrics(**replaced(tied, query_ids=ids, query_cameras=cameras))


def test_ranks_that_do_not_exist(tied):
    for max_rank in (0, 5.0, "5", None):
        with pytest.raises(InputError, match=f"max_rank: .* 1, got {max_rank!r}"):
            retrieval_metrics(*tied, max_rank=max_rank)
    result = retrieval_metrics(*tied, max_rank=5)
    for k in (0, 6):
        with pytest.raises(InputError, match=f"from 1 to 5 .*, got {k}"):
            result.rank(k)
