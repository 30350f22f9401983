"""Settings of an index: of which model its vectors are, and where they are stored."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr

Distance = Literal["euclidean", "cosine"]
Kind = Literal["flat", "hnsw"]
Engine = Literal["faiss", "milvus"]
CHOICES = {"distance": get_args(Distance), "kind": get_args(Kind), "engine": get_args(Engine)}
UNIT_LENGTH = 1e-3
"""How far the length of a normalized float32 vector may be from 1."""


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """Settings of an index, fixed when it is built.

    Args:
        model: path of the model that computes the vectors.
        fingerprint: of that model and branch, see `LoadedModel.fingerprint`.
        branch: "sa", "glca", or None for the model's default.
        dimension: D of the vectors.
        distance: "euclidean" or "cosine".
        normalized: whether the model scales its features to length 1.
        kind: "flat" (exact) or "hnsw" (approximate, for millions of vectors).
        engine: "faiss" (files in the folder of the index) or "milvus".
        uri: of Milvus: a file (Milvus Lite) or the address of a server; None with FAISS.
        collection: name of the Milvus collection; None with FAISS.
        source: where an exported file computes the vectors, the fingerprint of the model that it was exported from, see
            `LoadedModel.source_fingerprint`; None otherwise.
    """

    model: str
    fingerprint: str
    dimension: int
    branch: str | None = None
    distance: Distance = "euclidean"
    normalized: bool = True
    kind: Kind = "flat"
    engine: Engine = "faiss"
    uri: str | None = None
    collection: str | None = None
    source: str | None = None

    @property
    def metric(self) -> Literal["inner product", "L2"]:
        """What orders neighbors: of vectors of length 1, the inner product orders by both distances."""
        return "inner product" if self.normalized or self.distance == "cosine" else "L2"

    def prepare(self, features: np.ndarray) -> np.ndarray:
        """Features of the model as the index stores them: (N, D) float32, of length 1 with the inner product.

        Raises:
            InputError: another shape, or values that are not finite.
        """
        features = np.ascontiguousarray(features, dtype="<f4")
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise InputError(f"features: expected (N, {self.dimension}), got {features.shape}")
        if not np.isfinite(features).all():
            raise InputError("features: expected finite numbers, got NaN or infinity")
        if self.metric == "L2":
            return features
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        if self.distance == "cosine":
            return features / np.maximum(lengths, 1e-12)
        if len(features) and np.abs(lengths - 1).max() > UNIT_LENGTH:
            raise InputError("features: expected vectors of length 1, as the model of this index gives them")
        return features

    def distances(self, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Distances, (N,) float64, of one prepared query, (D,), to vectors of the index, (N, D)."""
        query, vectors = query.astype(np.float64), vectors.astype(np.float64)
        if self.distance == "cosine":
            return np.maximum(1 - vectors @ query, 0)  # of equal float32 vectors, rounding may leave less than 0
        return np.linalg.norm(vectors - query, axis=1)

    def to_json(self) -> str:
        values = asdict(self)
        if self.source is None:  # as earlier versions wrote it, which read no other names
            del values["source"]
        return json.dumps({"format_version": FORMAT_VERSION, **values})

    @classmethod
    def from_json(cls, text: str, source: str) -> "IndexSettings":
        """Reads what `to_json` wrote; `source` is where it is from, for errors.

        Raises:
            InputError: it is something else, or of a later version.
        """
        try:
            read = json.loads(text)
            check_version(read.pop("format_version", None), source)
            settings = cls(**read)
            settings._check()
        except InputError:
            raise
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{source}: settings of the index cannot be read: {short_repr(f'{error}')}") from error
        return settings

    def _check(self) -> None:
        for each in fields(self):
            value: Any = getattr(self, each.name)
            expected = {"dimension": int, "normalized": bool}.get(each.name, str)
            if value is None and each.name in ("branch", "uri", "collection", "source"):
                continue
            if type(value) is not expected or value not in CHOICES.get(each.name, (value,)):
                raise ValueError(f"{each.name}: unexpected value {short_repr(value)}")
        if not 1 <= self.dimension <= 1 << 16:
            raise ValueError(f"dimension: expected 1 to 65,536, got {self.dimension}")
        if (self.engine == "milvus") != (self.uri is not None and self.collection is not None):
            raise ValueError("expected uri and collection with Milvus, and none with FAISS")
