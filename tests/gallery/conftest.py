"""Indexes of random vectors, without a model."""

import zlib
from collections.abc import Callable

import numpy as np
import pytest

from dual_cross_attention.gallery import GalleryIndex, IndexSettings
from dual_cross_attention.gallery.index import GalleryImage

DIMENSION = 8


def vector(content: str, dimension: int = DIMENSION) -> np.ndarray:
    """The feature of a file's content: of length 1, the same at every call."""
    drawn = np.random.default_rng(zlib.crc32(content.encode())).standard_normal(dimension)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def add(index: GalleryIndex, files: dict[str, tuple[str | None, str]]):
    """Adds files, {path: (identity, content)}, as `add_files` does with real ones."""
    images = [GalleryImage(path, identity, content.encode()) for path, (identity, content) in files.items()]
    with index.writing():
        missing = index.missing([image.digest for image in images])
        if missing:
            dimension = index.settings.dimension
            features = np.stack([vector(images[place].digest.decode(), dimension) for place in missing])
            index.stage([images[place].digest for place in missing], features)
        return index.add(images)


def settings(**changed) -> IndexSettings:
    return IndexSettings(**{"model": "/m.safetensors", "fingerprint": "0" * 32, "dimension": DIMENSION} | changed)


@pytest.fixture
def make_index(tmp_path) -> Callable[..., GalleryIndex]:
    """`make_index(kind="hnsw")` makes an empty index."""

    def make(**changed) -> GalleryIndex:
        return GalleryIndex.create(tmp_path / f"index-{len(list(tmp_path.iterdir()))}", settings(**changed))

    return make
