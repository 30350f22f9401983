"""The Milvus engine, run on Milvus Lite, against FAISS."""

import sys

import numpy as np
import pytest

from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery import GalleryIndex
from dual_cross_attention.gallery.store import State

from .conftest import DIMENSION, add, settings, vector

FILES = {f"/photos/{number}": (f"{number // 3}" if number % 4 else None, f"{number}") for number in range(40)}


@pytest.fixture
def make_pair(make_index, tmp_path):
    """A FAISS and a Milvus index with the same images."""
    pytest.importorskip("milvus_lite")
    pytest.importorskip("pymilvus")

    def make(**changed):
        place = {"engine": "milvus", "uri": f"{tmp_path / 'vectors.db'}", "collection": "dcal_test"}
        pair = make_index(**changed), make_index(**changed, **place)
        for index in pair:
            add(index, FILES)
        return pair

    return make


@pytest.mark.parametrize(
    "changed", [{}, {"kind": "hnsw"}, {"distance": "cosine"}, {"normalized": False}], ids=lambda each: f"{each}"
)
def test_the_same_answers_as_faiss(make_pair, changed):
    faiss, milvus = make_pair(**changed)
    queries = np.stack([vector(f"query {number}") for number in range(5)] + [vector("7")])

    def compare(index):
        for k, named_only in ((1, True), (7, False), (100, False)):
            ours, theirs = faiss.search(queries, k, named_only), index.search(queries, k, named_only)
            for one, other in zip(ours, theirs, strict=True):
                assert [each.path for each in one] == [each.path for each in other]
                assert [each.distance for each in one] == pytest.approx([each.distance for each in other], abs=1e-6)

    compare(milvus)
    for index in (faiss, milvus):
        index.remove(["/photos/7"], identity="2")
    compare(milvus)
    for index in (faiss, milvus):
        assert index.rebuild() == 2
        add(index, {"/more": ("2", "more")})
    compare(milvus)
    assert milvus.info()["images"] == 39
    compare(GalleryIndex.open(milvus.folder))


def test_vectors_of_an_interrupted_write_are_not_found(make_pair):
    _, milvus = make_pair()
    lost = vector("lost")[None]
    milvus._vectors.append(State(0, len(FILES), 0), lost)  # and killed before the database's commit
    assert "lost" not in {match.path for match in milvus.search(lost, 50)[0]}
    assert len(milvus.search(lost, 50)[0]) == len(FILES)
    add(milvus, {"/other": ("ann", "other")})
    assert milvus.search(vector("other")[None], 1)[0][0].path == "/other"


def test_missing_vectors_are_refused(make_pair):
    _, milvus = make_pair()
    milvus._vectors._client.drop_collection("dcal_test_0")
    with pytest.raises(InputError, match="expected 40 vectors"):
        GalleryIndex.open(milvus.folder)


def test_without_pymilvus_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    place = {"engine": "milvus", "uri": f"{tmp_path / 'vectors.db'}", "collection": "dcal_test"}
    with pytest.raises(InputError, match=r"dual-cross-attention\[milvus\]"):
        GalleryIndex.create(tmp_path / "index", settings(**place))
    assert not (tmp_path / "index").exists()


def test_no_server(tmp_path):
    pytest.importorskip("pymilvus")
    place = {"engine": "milvus", "uri": "nothing://localhost:1", "collection": "dcal_test"}
    index = GalleryIndex.create(tmp_path / "index", settings(**place, dimension=DIMENSION))
    with pytest.raises(InputError, match="localhost"):
        add(index, {"/1": ("ann", "x")})
