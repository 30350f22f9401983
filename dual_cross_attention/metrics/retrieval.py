"""mAP and CMC of object re-identification, and every query's ranking, without ever holding queries × gallery.

Notable:
- the protocol, Market-1501's or one without cameras, is decided in one place (`_Search.masks`): what a query may find
  and what counts as found;
- metrics need the ranks of a query's few matches only: the matches are sorted, every gallery image is located among
  them and counted, and the counts add up to exact ranks. The gallery itself is not sorted;
- ties go to the lower gallery index, on every device and for every block size (see `distances`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dual_cross_attention.errors import InputError
from dual_cross_attention.metrics.distances import BLOCK_SIZE, Distances, as_features, blocks, order_keys, read_keys
from dual_cross_attention.metrics.inputs import as_integers, as_pair, at_least_1
from dual_cross_attention.metrics.reranking import KReciprocalDistances

LAST = torch.iinfo(torch.int64).max  # behind every key: what a query must not find

Progress = Callable[[Iterable], Iterable]


@dataclass(frozen=True)
class RetrievalMetrics:
    """Results of retrieval.

    Attributes:
        mAP: mean of the average precisions of the valid queries, 0 to 1.
        cmc: (max_rank,) float64; entry k − 1 is the share of valid queries with a match among their first k.
        average_precisions: (Q,) float64, NaN for a query without a match in the gallery.
        num_valid_queries: those with a match; the others are not averaged.
    """

    mAP: float
    cmc: Tensor
    average_precisions: Tensor
    num_valid_queries: int

    def rank(self, k: int) -> float:
        """Rank-k accuracy, 0 to 1; k from 1 to max_rank."""
        if not 1 <= k <= len(self.cmc):
            raise InputError(f"rank: expected k from 1 to {len(self.cmc)} (max_rank), got {k}")
        return self.cmc[k - 1].item()


def retrieval_metrics(
    query,
    gallery=None,
    query_ids=None,
    gallery_ids=None,
    query_cameras=None,
    gallery_cameras=None,
    distance: str = "euclidean",
    max_rank: int = 50,
    *,
    query_files=None,
    gallery_files=None,
    leave_one_out: bool = False,
    rerank: bool = False,
    block_size: int = BLOCK_SIZE,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> RetrievalMetrics:
    """mAP and CMC after Zheng et al. 2015 ("Scalable Person Re-identification: A Benchmark", Market-1501).

    A query does not see junk (identities below 0), gallery images of its own identity under its own camera if cameras
    are given, and gallery images of its own file if files are given. The others are ranked by distance; AP is the mean,
    over the query's matches, of the precision at each match, over the whole ranking, however small max_rank is: as
    torchreid and TransReID have it (Market-1501's own code averages neighboring precisions, which gives slightly less).
    A query without a match left is skipped.

    Args:
        query: features (Q, D), a tensor, an array, or a list of rows.
        gallery: features (G, D).
        query_ids: Q integers, a tensor, an array or a list; 0 is an identity like others. Likewise gallery_ids.
        query_cameras, gallery_cameras: Q and G integers; None for both: there are no cameras.
        distance: "euclidean" or "cosine"; ranked as float32, of euclidean distances their squares.
        max_rank: length of the CMC curve, which is flat beyond the gallery's size.
        query_files, gallery_files: Q and G integers that number the image files, for galleries that contain the
            queries; None for both: no gallery image is a query's own file.
        leave_one_out: the queries are the gallery too, and each is searched for among all others. `gallery` and its
            ids, cameras and files are omitted, or are the same objects as those of the queries.
        rerank: rank by `metrics.rerank`'s distances, with their default arguments.
        block_size: (query, gallery) pairs held at once; bounds memory, and does not change the result.
        device: where to compute; None: where the features are if that is CUDA, else CUDA if there is one, else the CPU.
        progress: wraps the list of blocks and is iterated in its place, like `tqdm`.

    Raises:
        InputError: features, identities, cameras or files that cannot be compared, or of one side only; no query with
            a match; a max_rank or block_size below 1.
    """
    max_rank = at_least_1("max_rank", max_rank)
    queries = _Side(query, query_ids, query_cameras, query_files)
    others = _Side(gallery, gallery_ids, gallery_cameras, gallery_files)
    search = _Search(queries, others, leave_one_out, distance, rerank, block_size, device, progress, need_matches=True)
    parts = [_evaluate(keys, matches) for keys, matches in search]
    average_precisions, first_ranks = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    valid = ~average_precisions.isnan()
    num_valid = int(valid.sum())
    hits = torch.bincount(first_ranks[valid].clamp(max=max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
    cmc = hits.cumsum(0).double() / num_valid
    return RetrievalMetrics(average_precisions[valid].mean().item(), cmc, average_precisions, num_valid)


def rank_gallery(
    query,
    gallery=None,
    query_ids=None,
    gallery_ids=None,
    query_cameras=None,
    gallery_cameras=None,
    distance: str = "euclidean",
    *,
    query_files=None,
    gallery_files=None,
    leave_one_out: bool = False,
    rerank: bool = False,
    block_size: int = BLOCK_SIZE,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the ranking of every query, nearest first: gallery indices (int64) and distances (float32).

    Same arguments, removals and order as `retrieval_metrics`; queries without a match are ranked, too. Distances are
    euclidean (not squared), cosine or, with rerank, re-ranked ones. Tensors are on the CPU.

    Raises:
        InputError: as `retrieval_metrics`, at the call and not at the first query.
    """
    queries = _Side(query, query_ids, query_cameras, query_files)
    others = _Side(gallery, gallery_ids, gallery_cameras, gallery_files)
    search = _Search(queries, others, leave_one_out, distance, rerank, block_size, device, progress)
    squared = distance == "euclidean" and not rerank

    def rankings() -> Iterator[tuple[Tensor, Tensor]]:
        for keys, _ in search:
            found = (keys != LAST).sum(1).tolist()
            indices, distances = (part.cpu() for part in read_keys(keys.sort(dim=1).values))
            distances = distances.sqrt() if squared else distances
            yield from ((indices[row, :n], distances[row, :n]) for row, n in enumerate(found))

    return rankings()


class _Side(NamedTuple):
    """Arguments of `retrieval_metrics` that are of the queries, or of the gallery."""

    features: Any
    ids: Any
    cameras: Any
    files: Any


def _one_set(queries: _Side, others: _Side) -> tuple[_Side, _Side]:
    """Queries and gallery of a leave-one-out search.

    Raises:
        InputError: a gallery that is another set.
    """
    for name, own, other in zip(_Side._fields, queries, others, strict=True):
        if other is not None and other is not own:
            raise InputError(f"leave_one_out searches one set, that of query: expected no gallery, got its {name}")
    return queries, queries


class _Search:
    """Iterates over blocks of queries: their order keys, LAST for what they must not find, and their matches."""

    def __init__(
        self, queries: _Side, others: _Side, leave_one_out, distance, rerank, block_size, device, progress,
        need_matches=False,
    ):  # fmt: skip
        if leave_one_out:
            queries, others = _one_set(queries, others)
        elif others.features is None:
            raise InputError("gallery: expected features, got None: with leave_one_out=True, the queries are searched")
        query, gallery = as_features(queries.features, others.features, device)
        self.query_ids = as_integers(queries.ids, "query_ids", query)
        self.gallery_ids = as_integers(others.ids, "gallery_ids", gallery)
        self.cameras = as_pair(queries.cameras, others.cameras, "cameras", query, gallery)
        self.files = as_pair(queries.files, others.files, "files", query, gallery)
        if leave_one_out and self.files is None:  # each row is a file of its own
            self.files = (torch.arange(len(query), device=query.device),) * 2
        if need_matches:  # before long computations
            self._expect_a_match(block_size)
        self.progress = progress or iter
        self.distances: Distances | KReciprocalDistances
        if rerank:
            options = {"block_size": block_size, "device": query.device, "progress": progress}
            one = None if leave_one_out else gallery
            self.distances = KReciprocalDistances(query, one, distance=distance, **options)
        else:
            self.distances = Distances(query, gallery, distance, query.device)
        self.blocks = blocks(len(query), self.distances.width, block_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.progress(self.blocks):
            hidden, matches = self.masks(rows)
            yield order_keys(self.distances(rows)).masked_fill_(hidden, LAST), matches

    def masks(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The protocol: masks (rows, G) of ignored gallery images and of matches."""
        same_identity = self.query_ids[rows, None] == self.gallery_ids
        hidden = (self.gallery_ids < 0).expand_as(same_identity)
        if self.cameras:
            query_cameras, gallery_cameras = self.cameras
            hidden = hidden | (same_identity & (query_cameras[rows, None] == gallery_cameras))
        if self.files:
            query_files, gallery_files = self.files
            hidden = hidden | (query_files[rows, None] == gallery_files)
        return hidden, same_identity & ~hidden

    def _expect_a_match(self, block_size: int) -> None:
        """Raises InputError if no query has a match left."""
        if any(self.masks(rows)[1].any() for rows in blocks(len(self.query_ids), len(self.gallery_ids), block_size)):
            return
        enrolled = torch.isin(self.query_ids, self.gallery_ids[self.gallery_ids >= 0])
        own = [what for what, pair in (("camera", self.cameras), ("file", self.files)) if pair]
        only = f"in their own {' or '.join(own)} only" if own else "only as junk"
        raise InputError(
            f"no query has a match in the gallery: of {len(enrolled)} queries, {int(enrolled.sum())} have their "
            f"identity there {only}, {int((~enrolled).sum())} not at all; check the identities"
            f"{' and cameras' if self.cameras else ''} of both sets"
        )


def _evaluate(keys: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, G) keys and matches → each query's average precision (NaN without a match) and its first match's rank."""
    ranks, counts = _match_ranks(keys, matches)
    nth = torch.arange(1, ranks.shape[1] + 1, device=ranks.device)
    precisions = (nth / ranks.double()).masked_fill_(nth > counts[:, None], 0.0)
    return precisions.sum(1) / counts, ranks[:, 0]


def _match_ranks(keys: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
    """The ranks of every query's matches, ascending from 1 and padded to the longest list, and how many it has."""
    counts = matches.sum(1)
    width = max(1, int(counts.max()))
    row, column = matches.nonzero(as_tuple=True)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    wanted = keys.new_full((len(keys), width), LAST)
    wanted[row, place] = keys[row, column]
    wanted = wanted.sort(dim=1).values
    # Where a key would stand among the wanted ones: it is ahead of, or is itself, all wanted from there on.
    bins = torch.searchsorted(wanted, keys)
    bins += torch.arange(len(keys), device=keys.device)[:, None] * (width + 1)
    found = torch.bincount(bins.flatten(), minlength=len(keys) * (width + 1)).view(-1, width + 1)
    return found.cumsum(1)[:, :width], counts
