"""An index against brute force over a dictionary of its images."""

import json
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery import GalleryIndex, vectors

from .conftest import DIMENSION, add, settings, vector

CONTENTS = [f"content {number}" for number in range(12)]
PATHS = [f"/photos/{folder}/{number}.jpg" for folder in "ab" for number in range(4)]
IDENTITIES = ["ann", "bob", None]
OPERATIONS = st.one_of(
    st.tuples(
        st.just("add"),
        st.dictionaries(st.sampled_from(PATHS), st.tuples(st.sampled_from(IDENTITIES), st.sampled_from(CONTENTS))),
    ),
    st.tuples(st.just("remove path"), st.sampled_from([*PATHS, "/photos/a", "/photos"])),
    st.tuples(st.just("remove identity"), st.sampled_from(["ann", "bob"])),
    st.tuples(st.just("rebuild"), st.none()),
)


class Expected:
    """What an index of files that do not exist on disk holds: by content, (identity, path)."""

    def __init__(self):
        self.images: dict[str, tuple[str | None, str]] = {}

    def apply(self, operation: str, given) -> bool:
        """Whether the operation is allowed."""
        if operation == "add":
            for path, (identity, content) in given.items():
                earlier = self.images.get(content, (None, path))[0]
                self.images = {key: value for key, value in self.images.items() if value[1] != path or key == content}
                self.images[content] = (earlier if identity is None else identity, path)
        elif operation != "rebuild":
            place = 0 if operation == "remove identity" else 1
            hit = [
                key
                for key, value in self.images.items()
                if value[place] == given or (place and value[1].startswith(f"{given}/"))
            ]
            for key in hit:
                del self.images[key]
            return bool(hit)
        return True

    def search(self, query: np.ndarray, k: int, named_only: bool) -> list[tuple[float, str | None, str]]:
        found = [
            (float(np.linalg.norm(vector(content).astype(np.float64) - query.astype(np.float64))), identity, path)
            for content, (identity, path) in self.images.items()
            if identity is not None or not named_only
        ]
        return sorted(found, key=lambda each: each[0])[:k]


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@hypothesis_settings(max_examples=25, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=8))
@example(  # the content of a file is replaced, and stands in another file of the same call
    operations=[
        ("add", {"/photos/a/2.jpg": ("ann", "content 0")}),
        ("add", {"/photos/a/2.jpg": ("ann", "content 1"), "/photos/a/1.jpg": (None, "content 0")}),
    ]
)
def test_any_sequence_of_operations_against_brute_force(kind, operations):
    tail = vectors.FLAT_TAIL
    vectors.FLAT_TAIL = 3  # so that vectors are in the graph
    try:
        with tempfile.TemporaryDirectory() as folder:
            index, expected = GalleryIndex.create(Path(folder) / "index", settings(kind=kind)), Expected()
            for operation, given_ in operations:
                allowed = expected.apply(operation, given_)
                if operation == "add":
                    add(index, given_)
                elif operation == "rebuild":
                    index.rebuild()
                else:
                    remove = {"identity": given_} if operation == "remove identity" else {"paths": [given_]}
                    if allowed:
                        index.remove(**remove)
                    else:
                        with pytest.raises(InputError):
                            index.remove(**remove)
            index.close()
            index = GalleryIndex.open(Path(folder) / "index")
            assert {row.path: row.identity for row in index.images()} == {
                path: identity for identity, path in expected.images.values()
            }
            queries = np.stack([vector(content) for content in [*CONTENTS[:3], "a query"]])
            for k, named_only in ((1, False), (4, True), (50, False)):
                for query, found in zip(queries, index.search(queries, k, named_only), strict=True):
                    wanted = expected.search(query, k, named_only)
                    assert [(each.identity, each.path) for each in found] == [each[1:] for each in wanted]
                    assert [each.distance for each in found] == pytest.approx([each[0] for each in wanted], abs=1e-6)
            index.close()
    finally:
        vectors.FLAT_TAIL = tail


@pytest.mark.parametrize(("distance", "normalized"), [("cosine", True), ("cosine", False), ("euclidean", False)])
def test_distances_are_those_of_the_definition(make_index, distance, normalized):
    random = np.random.default_rng(0)
    features = random.standard_normal((60, DIMENSION)).astype(np.float32)
    if normalized:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    index = make_index(distance=distance, normalized=normalized)
    images = {f"/{number}": (f"{number}", f"{number}") for number in range(60)}
    with index.writing():
        index.stage([content.encode() for _, content in images.values()], features)
    add(index, images)
    queries = features[:30] + np.float32(0.1)  # more than FAISS computes one by one
    if normalized:
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for query, found in zip(queries, index.search(queries, 5), strict=True):
        a, b = query.astype(np.float64), features.astype(np.float64)
        exact = 1 - b @ a / np.linalg.norm(a) / np.linalg.norm(b, axis=1)
        exact = exact if distance == "cosine" else np.linalg.norm(b - a, axis=1)
        assert [int(each.identity) for each in found] == exact.argsort()[:5].tolist()
        assert [each.distance for each in found] == pytest.approx(sorted(exact)[:5], abs=1e-6)


def test_adding_twice_changes_nothing(make_index):
    index, files = make_index(), {"/a/1": ("ann", "x"), "/b/2": (None, "y")}
    assert (add(index, files).added, add(index, files).unchanged) == (2, 2)
    assert index.info()["images"] == 2 and index.info()["unknown"] == 1


def test_files_are_known_by_their_content(make_index, tmp_path):
    index = make_index()
    add(index, {"/gone/1": ("ann", "x")})
    assert add(index, {"/new/1": ("ann", "x")}).renamed == 1
    assert [(row.path, row.identity) for row in index.images()] == [("/new/1", "ann")]
    assert add(index, {"/new/1": ("bob", "x")}).reassigned == 1  # sorted anew
    assert add(index, {"/new/1": (None, "x")}).unchanged == 1  # a known identity stays
    assert add(index, {"/new/1": ("bob", "other")}).replaced == 1  # the file has another content
    assert [(row.path, row.digest) for row in index.images()] == [("/new/1", b"other")]
    there = tmp_path / "there.jpg"
    there.touch()
    add(index, {f"{there}": ("cat", "z")})
    done = add(index, {"/copy": ("cat", "z")})
    assert (done.copies, done.conflicts) == (1, [])
    done = add(index, {"/copy": ("dog", "z")})
    assert done.conflicts == [("/copy", "dog", f"{there}", "cat")]
    assert (f"{there}", "cat") in [(row.path, row.identity) for row in index.images()]


def test_a_removed_image_is_added_again_without_its_feature(make_index):
    index = make_index()
    add(index, {"/1": ("ann", "x"), "/2": ("bob", "y")})
    index.remove(identity="ann")
    with index.writing():
        assert index.missing([b"x", b"z", b"z"]) == [1]
    assert add(index, {"/1": ("ann", "x")}).added == 1 and index.info()["unused"] == 0


def test_info_says_when_to_rebuild(make_index):
    index = make_index()
    add(index, {f"/{number}": ("ann", f"{number}") for number in range(10)})
    index.remove(["/0", "/1"])
    assert index.info()["rebuild"] is None
    index.remove(["/2"])
    assert "3 of 10" in index.info()["rebuild"]
    size = index.info()["bytes"]
    assert index.rebuild() == 3
    info = index.info()
    assert info["rebuild"] is None and info["unused"] == 0 and info["images"] == 7
    assert info["bytes"] == size - 3 * 4 * DIMENSION


def test_paths_and_names_of_any_bytes(make_index):
    index, path = make_index(), b"/caf\xe9/\xff'\"%_.jpg".decode("utf-8", "surrogateescape")
    add(index, {path: ("Zoë\n'; DROP TABLE images; --", "x"), "/percent": ("100%", "y")})
    assert {row.path for row in index.images()} == {path, "/percent"}
    assert index.search(vector("x")[None], 1)[0][0].identity == "Zoë\n'; DROP TABLE images; --"
    assert index.remove(["/caf\udce9"]) == 1


def test_nothing_found_and_what_is_refused(make_index):
    index = make_index()
    assert index.search(vector("x")[None], 3) == [[]]
    add(index, {"/1": (None, "x")})
    assert index.search(vector("x")[None], 3, named_only=True) == [[]]
    assert index.search(np.empty((0, DIMENSION)), 3) == []
    for features, k, said in (
        (np.zeros((1, 3)), 1, "(N, 8)"),
        (np.full((1, DIMENSION), np.nan), 1, "finite"),
        (np.ones((1, DIMENSION)), 1, "length 1"),
        (vector("x")[None], 0, "top_k"),
    ):
        with pytest.raises(InputError, match=said.replace("(", r"\(").replace(")", r"\)")):
            index.search(features, k)


def test_an_index_is_made_in_an_empty_folder_only(make_index, tmp_path):
    index = make_index()
    with pytest.raises(InputError, match="index add"):
        GalleryIndex.create(index.folder, settings())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="new folder"):
        GalleryIndex.create(tmp_path / "other", settings())
    with pytest.raises(InputError, match="no index"):
        GalleryIndex.open(tmp_path / "other")


def change_settings(index, **changed):
    with sqlite3.connect(index.folder / "index.sqlite") as connection:
        text = connection.execute("SELECT value FROM meta WHERE name = 'settings'").fetchone()[0]
        connection.execute(
            "UPDATE meta SET value = ? WHERE name = 'settings'", (json.dumps(json.loads(text) | changed),)
        )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format_version": 999}, "update"),
        ({"dimension": -1}, "dimension"),
        ({"dimension": "8"}, "dimension"),
        ({"kind": "tree"}, "kind"),
        ({"engine": "milvus"}, "uri"),
        ({"unheard": 1}, "unheard"),
        ({"model": None}, "model"),
    ],
)
def test_an_index_of_another_version_is_refused(make_index, changed, said):
    index = make_index()
    index.close()
    change_settings(index, **changed)
    with pytest.raises(InputError, match=said) as refused:
        GalleryIndex.open(index.folder)
    assert "\n" not in f"{refused.value}"


@pytest.mark.parametrize("name", ["vectors-0.f32", "index.sqlite", "graph-0-40.hnsw"])
@pytest.mark.parametrize("left", ["half", "nothing", "no file", "other bytes"])
def test_a_truncated_index_is_refused_in_a_line(make_index, monkeypatch, name, left):
    monkeypatch.setattr(vectors, "FLAT_TAIL", 10)
    index = make_index(kind="hnsw")
    add(index, {f"/{number}": ("ann", f"{number}") for number in range(40)})
    index.close()
    path = index.folder / name
    content = path.read_bytes()
    path.unlink()
    if left != "no file":
        changed = {"half": content[: len(content) // 2], "nothing": b"", "other bytes": b"\xff" * len(content)}
        path.write_bytes(changed[left])
    if (name, left) == ("vectors-0.f32", "other bytes"):
        return  # the right number of bytes: any is a vector
    with pytest.raises(InputError) as refused:
        GalleryIndex.open(index.folder).search(vector("x")[None], 3)
    assert "\n" not in f"{refused.value}"
    if name.startswith("graph"):
        GalleryIndex.open(index.folder).rebuild()
        assert GalleryIndex.open(index.folder).search(vector("7")[None], 1)[0][0].path == "/7"
