"""Retrieval without cameras, and leave-one-out, against literal loops."""

import math

import pytest
import torch

from dual_cross_attention import InputError
from dual_cross_attention.metrics import identity_distances, rank_gallery, rerank, retrieval_metrics

QUERIES, GALLERY = 9, 40


@pytest.fixture
def data():
    """Features with ties, junk in the gallery, an identity that the gallery lacks; (query, gallery, ids, ids)."""
    random = torch.Generator().manual_seed(3)
    query = torch.randint(-2, 3, (QUERIES, 5), generator=random).float()
    gallery = torch.randint(-2, 3, (GALLERY, 5), generator=random).float()
    query_ids = torch.randint(0, 4, (QUERIES,), generator=random)
    gallery_ids = torch.randint(-1, 4, (GALLERY,), generator=random)
    query_ids[3] = 70
    return query, gallery, query_ids, gallery_ids


def literal(query, gallery, query_ids, gallery_ids, is_hidden):
    """Rankings, average precisions (NaN without a match) and ranks of the first match; one pair at a time."""
    rankings, precisions, firsts = [], [], []
    for q in range(len(query)):
        visible = [
            (sum((a - b) ** 2 for a, b in zip(query[q].tolist(), gallery[g].tolist(), strict=True)), g)
            for g in range(len(gallery))
            if gallery_ids[g] >= 0 and not is_hidden(q, g)
        ]
        ranking = [g for _, g in sorted(visible)]
        hits = [rank for rank, g in enumerate(ranking, 1) if gallery_ids[g] == query_ids[q]]
        rankings.append(ranking)
        precisions.append(sum(n / rank for n, rank in enumerate(hits, 1)) / len(hits) if hits else math.nan)
        firsts += hits[:1]
    return rankings, precisions, firsts


def check(found, ranked, expected):
    rankings, precisions, firsts = expected
    assert [order.tolist() for order, _ in ranked] == rankings
    assert found.average_precisions.tolist() == pytest.approx(precisions, abs=1e-12, nan_ok=True)
    assert found.num_valid_queries == len(firsts)
    for k in (1, 5):
        assert found.rank(k) == pytest.approx(sum(first <= k for first in firsts) / len(firsts))


@pytest.mark.parametrize("block_size", [1, 2**20])
def test_without_cameras_every_gallery_image_counts(data, block_size):
    found = retrieval_metrics(*data, block_size=block_size)
    check(found, rank_gallery(*data, block_size=block_size), literal(*data, lambda q, g: False))
    assert found.average_precisions.isnan().nonzero().flatten().tolist() == [3]


def test_the_own_file_is_left_out_and_nothing_else(data):
    query, gallery, query_ids, gallery_ids = data
    gallery[:QUERIES], gallery_ids[:QUERIES] = query, query_ids  # the gallery contains the queries
    files = {"query_files": torch.arange(QUERIES), "gallery_files": torch.arange(GALLERY)}
    expected = literal(*data, lambda q, g: q == g)
    check(retrieval_metrics(*data, **files), rank_gallery(*data, **files), expected)
    assert retrieval_metrics(*data).rank(1) == 1  # each query finds itself


def test_files_are_left_out_under_other_identities_too(data):
    """Two crops of one file."""
    files = {"query_files": torch.arange(QUERIES), "gallery_files": torch.arange(GALLERY) % 12}
    expected = literal(*data, lambda q, g: q == g % 12)
    check(retrieval_metrics(*data, **files), rank_gallery(*data, **files), expected)


def test_cameras_and_files_together(data):
    query_ids, gallery_ids = data[2:]
    query_cameras, gallery_cameras = torch.arange(QUERIES) % 3, torch.arange(GALLERY) % 3
    files = {"query_files": torch.arange(QUERIES), "gallery_files": torch.arange(GALLERY) % 12}

    def is_hidden(q, g):
        return q == g % 12 or (query_ids[q] == gallery_ids[g] and q % 3 == g % 3)

    given = (*data, query_cameras, gallery_cameras)
    check(retrieval_metrics(*given, **files), rank_gallery(*given, **files), literal(*data, is_hidden))


@pytest.mark.parametrize("given_twice", [False, True])
@pytest.mark.parametrize("block_size", [1, 2**20])
def test_leave_one_out(data, given_twice, block_size):
    _, features, _, ids = data
    ids[5] = 88  # an identity with one image: no match, and still in the gallery of the others
    expected = literal(features, features, ids, ids, lambda q, g: q == g)
    given = (features, features, ids, ids) if given_twice else (features, None, ids)
    options = {"leave_one_out": True, "block_size": block_size}
    found = retrieval_metrics(*given, **options)
    check(found, rank_gallery(*given, **options), expected)
    assert found.average_precisions[5].isnan() and any(5 in order for order in expected[0])


def test_leave_one_out_with_cameras_and_with_files(data):
    _, features, _, ids = data
    cameras = torch.arange(GALLERY) % 2
    found = retrieval_metrics(features, query_ids=ids, query_cameras=cameras, leave_one_out=True)
    ranked = rank_gallery(features, query_ids=ids, query_cameras=cameras, leave_one_out=True)
    check(found, ranked, literal(features, features, ids, ids, lambda q, g: ids[q] == ids[g] and q % 2 == g % 2))
    options = {"query_ids": ids, "query_files": torch.arange(GALLERY) // 2, "leave_one_out": True}
    expected = literal(features, features, ids, ids, lambda q, g: q // 2 == g // 2)
    check(retrieval_metrics(features, **options), rank_gallery(features, **options), expected)


def test_leave_one_out_reranked_is_each_query_against_all_others():
    """The same images are neighbors of each other, so `rerank` of one query and the others has the same distances."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(5, 6, generator=random).repeat(7, 1) + 0.7 * torch.randn(35, 6, generator=random)
    ids = torch.arange(35) % 5
    ranked = list(rank_gallery(features, query_ids=ids, leave_one_out=True, rerank=True))
    for query, (order, distances) in enumerate(ranked):
        others = [g for g in range(35) if g != query]
        expected = rerank(features[[query]], features[others])[0]
        assert sorted(order.tolist()) == others
        torch.testing.assert_close(distances, expected[torch.tensor([others.index(g) for g in order.tolist()])])
    assert retrieval_metrics(features, query_ids=ids, leave_one_out=True, rerank=True).num_valid_queries == 35


def test_identity_distances_leave_out_the_own_file(data):
    _, features, _, ids = data
    files = torch.arange(GALLERY)
    table = identity_distances(features, features, ids, ids, probe_files=files, gallery_files=files)
    for probe in range(GALLERY):
        for column, identity in enumerate(table.identities.tolist()):
            others = [g for g in range(GALLERY) if ids[g] == identity and g != probe]
            expected = min((float((features[probe] - features[g]).norm()) for g in others), default=math.inf)
            assert table.distances[probe, column].item() == pytest.approx(expected, abs=1e-5)


def test_wrong_arguments(data):
    query, gallery, query_ids, gallery_ids = data
    with pytest.raises(InputError, match="cameras: expected those of query and gallery"):
        retrieval_metrics(*data, query_ids)
    with pytest.raises(InputError, match="files: expected those of query and gallery"):
        retrieval_metrics(*data, gallery_files=gallery_ids)
    with pytest.raises(InputError, match="leave_one_out searches one set"):
        retrieval_metrics(*data, leave_one_out=True)
    with pytest.raises(InputError, match="gallery: expected features"):
        retrieval_metrics(query, query_ids=query_ids)
    with pytest.raises(InputError, match="40 have their identity there in their own file only"):
        retrieval_metrics(gallery, query_ids=torch.arange(GALLERY), leave_one_out=True)
    with pytest.raises(InputError, match="9 not at all"):
        retrieval_metrics(query, gallery, query_ids + 100, gallery_ids)
