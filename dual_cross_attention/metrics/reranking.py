"""k-reciprocal re-ranking: images are close if they have the same reciprocal neighbors.

Notable:
- neighborhoods are sparse matrices, and the definition becomes their algebra: k-reciprocal is F ∘ Fᵀ, the overlaps
  that decide on the expansion are one product, local query expansion is another;
- of N × N distances only a block of rows exists at a time; kept are k neighbors of each image and their encodings.
"""

from collections.abc import Callable, Iterable
from numbers import Real

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from dual_cross_attention.errors import InputError
from dual_cross_attention.metrics.distances import (
    BLOCK_SIZE,
    Distances,
    as_features,
    blocks,
    order_keys,
    read_keys,
    squared_norms,
)
from dual_cross_attention.metrics.inputs import at_least_1
from dual_cross_attention.text import short_repr


def rerank(
    query,
    gallery,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    distance: str = "euclidean",
    *,
    block_size: int = BLOCK_SIZE,
    device: torch.device | str | None = None,
) -> Tensor:
    """(1 − λ)·d_Jaccard + λ·d, all of it: features (Q, D) and (G, D) → (Q, G) float32, on the CPU.

    Memory holds Q × G; `KReciprocalDistances`, which see, gives the same rows on demand.
    """
    distances = KReciprocalDistances(
        query, gallery, k1, k2, lambda_value, distance, block_size=block_size, device=device
    )
    return torch.cat([distances(rows).cpu() for rows in blocks(len(query), distances.width, block_size)])


class KReciprocalDistances:
    """Called with a slice of queries: their (rows, G) re-ranked distances, float32, 0 to 1.

    Source: Zhong, Zheng, Cao & Li, "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017,
    arXiv 1701.08398), section 3; where the authors' released code says more or otherwise, the code:

    - all images, queries and gallery (with its junk), are neighbors of each other;
    - d(p, g) = d′(p, g) / max d′(p, ·): the squared euclidean distance, or 1 − cos, over the largest in p's row;
    - N(p, k) are p itself, always first, and its k nearest (fewer where there are fewer images), of equals the lower
      index; R(p, k) = {g ∈ N(p, k): p ∈ N(g, k)};
    - R*(p, k1) adds R(q, k1/2) for every q ∈ R(p, k1) with |R(p, k1) ∩ R(q, k1/2)| > ⅔·|R(q, k1/2)|. The paper has ≥;
      > is the code's. k1/2 is rounded half to even, as by NumPy;
    - V(p, g) = e^(−d(p, g)) on R*(p, k1), else 0, divided by its sum, which is the code's;
    - V(p) becomes the mean of V over the first k2 of N(p), p among them;
    - d_Jaccard = 1 − Σ min / Σ max, and Σ max = 2 − Σ min since rows of V sum to 1.

    Args:
        query: features (Q, D).
        gallery: features (G, D). None: the queries are the gallery too, each image once (leave-one-out); then G = Q,
            and a query's distance to itself is 0.
        k1: size of the neighborhoods.
        k2: size of local query expansion; 1 leaves V as it is.
        lambda_value: λ, the share of the original distance.
        distance: "euclidean" or "cosine".
        block_size: pairs of images held at once.
        device: where distances are computed, see `Distances`; the encodings are on the CPU.
        progress: wraps the list of blocks of the search for neighbors, which takes longest.

    Raises:
        InputError: features that `Distances` refuses, k1, k2 or block_size below 1, λ outside 0 to 1.
    """

    def __init__(
        self,
        query,
        gallery=None,
        k1: int = 20,
        k2: int = 6,
        lambda_value: float = 0.3,
        distance: str = "euclidean",
        *,
        block_size: int = BLOCK_SIZE,
        device: torch.device | str | None = None,
        progress: Callable[[Iterable], Iterable] | None = None,
    ):
        k1, k2 = at_least_1("k1", k1), at_least_1("k2", k2)
        if not isinstance(lambda_value, Real) or not 0 <= lambda_value <= 1:
            raise InputError(f"lambda_value: expected λ from 0 to 1, got {short_repr(lambda_value)}")
        is_one_set = gallery is None
        query, gallery = as_features(query, query if is_one_set else gallery, device)
        for name, features in (("query", query), ("gallery", gallery)):
            squared_norms(features, name, distance == "cosine")  # raises with the name and rows the user knows
        everything = query if is_one_set else torch.cat([query, gallery])
        self.gallery_start: int = 0 if is_one_set else len(query)  # row of the first gallery image
        self.shape: tuple[int, int] = len(query), len(gallery)
        self.lambda_value: float = float(lambda_value)
        self.distances: Distances = Distances(everything, everything, distance, everything.device)
        self.width: int = self.distances.width
        search = blocks(len(everything), self.width, block_size)
        self.largest: Tensor
        self.query_encodings: sparse.csr_array
        self.gallery_encodings: sparse.csc_array
        neighbors, self.largest = self._neighbors(max(k1 + 1, k2), (progress or iter)(search))
        encodings = _membership(neighbors[:, :k2]) @ self._encode(neighbors, k1) / min(k2, len(neighbors))
        self.query_encodings = encodings[: len(query)]
        self.gallery_encodings = encodings[self.gallery_start :].tocsc()

    def __call__(self, rows: slice) -> Tensor:
        queries = self.shape[0]
        jaccard = np.stack([self._jaccard(query) for query in range(*rows.indices(queries))])
        original = self.distances(rows)[:, self.gallery_start :] / self.largest[rows, None]
        return (1 - self.lambda_value) * torch.from_numpy(jaccard).to(original) + self.lambda_value * original

    def _neighbors(self, k: int, search: Iterable[slice]) -> tuple[np.ndarray, Tensor]:
        """The k nearest of every image, itself first: (N, k) indices; and the largest distance of every row."""
        nearest, maxima = list[Tensor](), list[Tensor]()
        for rows in search:
            distances = self.distances(rows)
            maxima.append(distances.max(dim=1).values)
            keys = order_keys(distances)
            own = torch.arange(rows.start, rows.stop, device=keys.device)[:, None]
            keys.scatter_(1, own, own - (1 << 32))  # before every distance, even before equal features
            keys = keys.topk(min(k, keys.shape[1]), dim=1, largest=False, sorted=True).values
            nearest.append(read_keys(keys)[0].cpu())
        largest = torch.cat(maxima)
        return torch.cat(nearest).numpy(), largest.masked_fill_(largest == 0, 1.0)  # all images equal: 0 / 1

    def _encode(self, neighbors: np.ndarray, k1: int) -> sparse.csr_array:
        """V (N, N): how much every image is a k-reciprocal neighbor of another; rows sum to 1."""
        full, half = (_reciprocal(neighbors[:, : k + 1]) for k in (k1, int(np.around(k1 / 2))))
        overlap = (full * (full @ half)).tocoo()  # half is symmetric
        accepted = 3 * overlap.data > 2 * half.sum(axis=1)[overlap.col]  # integers: no rounding at exactly ⅔
        joined = sparse.csr_array((overlap.data * accepted, (overlap.row, overlap.col)), overlap.shape)
        expanded = (full + joined @ half).tocoo()
        expanded.eliminate_zeros()
        row, column = (torch.from_numpy(index).long() for index in (expanded.row, expanded.col))
        distances = self.distances.pairs(row, column) / self.largest.cpu()[row]
        weights = torch.exp(-distances)
        weights /= torch.zeros(len(neighbors), dtype=torch.float64).index_add_(0, row, weights)[row]
        return sparse.csr_array((weights.numpy(), (expanded.row, expanded.col)), expanded.shape)

    def _jaccard(self, query: int) -> np.ndarray:
        """(G,) Jaccard distances of one query; only the columns where its encoding is not 0 are looked at."""
        encoding = self.query_encodings[[query]]
        columns = self.gallery_encodings[:, encoding.indices]
        smaller = np.minimum(columns.data, np.repeat(encoding.data, np.diff(columns.indptr)))
        shared = np.bincount(columns.indices, smaller, minlength=self.shape[1])
        return np.maximum(1 - shared / (2 - shared), 0)


def _membership(neighbors: np.ndarray) -> sparse.csr_array:
    """(N, k) indices → (N, N), 1 where the column is among the row's neighbors."""
    n, k = neighbors.shape
    return sparse.csr_array((np.ones(n * k, np.int32), neighbors.ravel(), np.arange(0, n * k + 1, k)), (n, n))


def _reciprocal(neighbors: np.ndarray) -> sparse.csr_array:
    """(N, k) indices → (N, N), 1 where each of the two is among the other's neighbors; symmetric."""
    forward = _membership(neighbors)
    return (forward * forward.T).tocsr()
