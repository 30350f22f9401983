"""Distances from every query to every gallery image, a block of rows at a time, and keys that put them in order.

Notable:
- distances are computed in float64 and rounded to float32, far above the noise of a matrix product: whichever kernel
  or block computed a distance, it comes out the same (but for the one in 10⁷ or so that lies on the verge of two
  float32). Gallery rows with equal features have bitwise equal distances without any "but": theirs are copied;
- the gallery is converted to float64 chunk by chunk, so that no second, twice as large copy of it exists;
- a distance and its gallery index make one integer key. Keys are all different, so every way of ordering them, on every
  device, ends in the same ranking: nearest first, of equals the lower index.
"""

import torch
from torch import Tensor

from dual_cross_attention.errors import InputError
from dual_cross_attention.metrics.inputs import as_numbers, at_least_1
from dual_cross_attention.text import short_repr

BLOCK_SIZE = 2**23  # (query, gallery) pairs held at once: 64 MiB of keys
CHUNK = 2**19  # feature values converted to float64 at once: 4 MiB, which stay in the cache for the product
NOISE = 1e-12  # of ‖q‖² + ‖g‖²: above what float64 leaves of a distance of 0, below what float32 features can mean
LARGEST_SQUARE = 8e37  # of a norm: ‖q − g‖² ≤ 2‖q‖² + 2‖g‖² still is a float32


class Distances:
    """Called with a slice of queries: (rows, G) float32, ‖q − g‖² for "euclidean", 1 − cos(q, g) for "cosine".

    What is within float64's noise of 0 is 0.

    Args:
        query: (Q, D), tensor, array or list of any real type.
        gallery: (G, D), likewise.
        distance: "euclidean" or "cosine".
        device: where to compute. None: where the features are if that is CUDA, else CUDA where there is one, else the
            CPU. MPS knows no float64: CPU.

    Raises:
        InputError: another distance; features that do not match, are not finite, or have no direction (cosine).
    """

    def __init__(self, query, gallery, distance: str = "euclidean", device: torch.device | str | None = None):
        if distance not in ("euclidean", "cosine"):
            raise InputError(f"distance: expected 'euclidean' or 'cosine', got {distance!r}")
        self.cosine = distance == "cosine"
        self.query, self.gallery = as_features(query, gallery, device)
        self.query_squares = squared_norms(self.query, "query", self.cosine)
        self.gallery_squares = squared_norms(self.gallery, "gallery", self.cosine)
        self.repeats, self.originals = _repeated_rows(self.gallery)
        self.shape = len(self.query), len(self.gallery)
        self.width = max(self.gallery.shape)  # of a block: as many distances, or features, as a row of it needs

    def __call__(self, rows: slice) -> Tensor:
        query, query_squares = self._exact(self.query, self.query_squares, rows)
        out = torch.empty(len(query), len(self.gallery), device=query.device)
        for columns in blocks(len(self.gallery), self.gallery.shape[1], CHUNK):
            gallery, gallery_squares = self._exact(self.gallery, self.gallery_squares, columns)
            scale = query_squares[:, None] + gallery_squares
            squares = torch.addmm(scale, query, gallery.T, alpha=-2)
            out[:, columns] = squares.masked_fill_(squares <= NOISE * scale, 0.0)  # never negative, not even −0
        if self.cosine:
            out /= 2
        out[:, self.repeats] = out[:, self.originals]
        return out

    def pairs(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Distances of single pairs, given by two lists of indices of one length: float64, on the CPU."""
        out = []
        for chunk in blocks(len(query), self.query.shape[1], CHUNK):
            q, _ = self._exact(self.query, self.query_squares, query[chunk].to(self.query.device))
            g, _ = self._exact(self.gallery, self.gallery_squares, gallery[chunk].to(self.query.device))
            out.append((q - g).square_().sum(1).cpu())
        return torch.cat(out) / (2 if self.cosine else 1)

    def _exact(self, features: Tensor, squares: Tensor, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Rows in float64 and their squared norms. 1 − cos is half the squared distance of unit vectors."""
        features, squares = features[rows].double(), squares[rows]
        if self.cosine:
            return features / squares.sqrt()[:, None], torch.ones_like(squares)
        return features, squares


def as_features(query, gallery, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Tensors of (Q, D) and (G, D), on the device to compute on; see `Distances`."""
    query, gallery = as_numbers(query, "query"), as_numbers(gallery, "gallery")
    for name, features in (("query", query), ("gallery", gallery)):
        if features.ndim != 2 or not features.numel() or features.is_complex():
            hint = f": one image is {name}[None]" if features.ndim == 1 and features.numel() else ""
            raise InputError(
                f"{name}: expected real features of shape (images, dimensions), at least one of each; "
                f"got {features.dtype} of shape {tuple(features.shape)}{hint}"
            )
    if query.shape[1] != gallery.shape[1]:
        raise InputError(
            f"expected features of one length, got query {query.shape[1]}, gallery {gallery.shape[1]}: both must come "
            "from the same model and branch"
        )
    if device is None:
        device = next((one.device for one in (query, gallery) if one.is_cuda), None)
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device("cpu" if torch.device(device).type == "mps" else device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device: expected a name such as 'cpu' or 'cuda', got {short_repr(device)}") from error
    query, gallery = query.to(device), gallery.to(device)
    return tuple(one if one.is_floating_point() else one.double() for one in (query, gallery))


def squared_norms(features: Tensor, name: str, cosine: bool = False) -> Tensor:
    """(N,) float64, and the proof that the features can be compared."""
    squares = torch.cat(
        [features[rows].double().square().sum(1) for rows in blocks(len(features), features.shape[1], CHUNK)]
    )
    for bad, expected in (
        (~(squares < LARGEST_SQUARE), f"finite features, of a squared norm below {LARGEST_SQUARE:.0e}"),  # ~: NaN too
        ((squares == 0) & cosine, "features with a direction for the cosine distance; all zero are"),
    ):
        if bad.any():
            first = bad.nonzero()[:5, 0].tolist()
            raise InputError(f"{name}: expected {expected}: {int(bad.sum())} of {len(bad)} rows, first {first}")
    return squares


def blocks(rows: int, columns: int, size: int) -> list[slice]:
    """Cuts rows × columns values into blocks of whole rows, at most `size` values each but at least one row."""
    step = max(1, at_least_1("block_size", size) // columns)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def order_keys(distances: Tensor) -> Tensor:
    """(rows, G) → int64 keys that sort as (distance, index): float32 that are not negative sort as their bits do."""
    index = torch.arange(distances.shape[1], device=distances.device)
    return distances.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(index)


def read_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The indices and the distances the keys were made of."""
    return keys & 0xFFFFFFFF, (keys >> 32).int().view(torch.float32)


def _repeated_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the rows that repeat an earlier one, and of the first row they repeat."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, features.shape[1:], generator=generator).to(features.device)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[features.element_size()]
    chunks = blocks(len(features), features.shape[1], CHUNK)
    # A hash of the bits: integer sums wrap around, but do not depend on their order. + 0 turns −0 into 0.
    hashes = torch.cat([((features[rows] + 0).view(integers) * factors).sum(1) for rows in chunks])
    groups = hashes.unique(return_inverse=True)[1]
    index = torch.arange(len(features), device=features.device)
    first = torch.full_like(index, len(features)).scatter_reduce_(0, groups, index, "amin")[groups]
    same = torch.cat([(features[rows] == features[first[rows]]).all(1) for rows in chunks])
    repeats = (same & (first != index)).nonzero()[:, 0]
    return repeats, first[repeats]
