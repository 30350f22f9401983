"""Identification of a stream of images, grouping of tracks, and enrolling copies of a file."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from dual_cross_attention.gallery import identify as identification
from dual_cross_attention.gallery.enroll import enroll
from dual_cross_attention.gallery.identify import Decision, group_new, identify, identify_all
from dual_cross_attention.gallery.index import Match
from dual_cross_attention.gallery.settings import IndexSettings
from dual_cross_attention.gallery.tracks import Track
from dual_cross_attention.inference.prediction import Embedding

SETTINGS = IndexSettings(model="m", fingerprint="f", dimension=3)
SAME = SimpleNamespace(fpir=0.01, probability_same=lambda distance, branch: 0.5)


class NearOrigin:
    """An index of one image of one identity, at (1, 0, 0)."""

    settings = SETTINGS

    def search(self, features, k, named_only):
        distances = np.linalg.norm(features - np.array([1.0, 0, 0]), axis=1)
        return [[Match(float(each), "ann", "/ann.png", 0)] for each in distances]

    def of_identities(self, identities):
        return {"ann": np.array([[1.0, 0, 0]], np.float32)}


def unit(*values: float) -> np.ndarray:
    return (np.array(values) / np.linalg.norm(values)).astype(np.float32)


@pytest.fixture
def stream():
    """Five single images, the third of which cannot be read, and a track of two images between them."""
    angles = {"a": 0.1, "b": 1.5, "c": 0.2, "d": 2.0}
    images = [Embedding(f"in/{name}.png", unit(np.cos(each), np.sin(each), 0)) for name, each in angles.items()]
    images.insert(2, Embedding("in/broken.png", None, "broken"))
    images.insert(1, Embedding("in/walk/0.png", unit(1, 1, 0)))
    images.append(Embedding("in/walk/1.png", unit(1, 0, 1)))
    return images


@pytest.mark.parametrize("at_once", [1, 2, 256])
def test_a_stream_is_answered_as_its_tracks(stream, monkeypatch, at_once):
    monkeypatch.setattr(identification, "AT_ONCE", at_once)
    decision = Decision(1, 0.5, 0.01)
    found = identify_all(NearOrigin(), SAME, decision, iter(stream), ["in"], keep_new=True)
    assert [(each.path, each.error) for each in found.images] == [(each.path, each.error) for each in stream]
    walk = Track("in/walk", ["in/walk/0.png", "in/walk/1.png"], [stream[1].feature, stream[6].feature])
    alone = [Track(None, [each.path], [each.feature]) for each in stream if "walk" not in each.path and not each.error]
    expected = identify(NearOrigin(), SAME, decision, [alone[0], walk, *alone[1:]])
    assert found.answers == expected and [each.is_known for each in expected] == [True, False, False, True, False]
    assert [each.track for each in found.images] == [0, 1, 2, None, 3, 4, 1]


@pytest.mark.parametrize("keep_new", [False, True])
def test_features_are_dropped_when_they_are_not_needed(stream, monkeypatch, keep_new):
    """Of images that are known, and of new ones unless these are grouped or enrolled; while the stream runs."""
    monkeypatch.setattr(identification, "AT_ONCE", 2)
    held = []

    def watched():
        for each in stream:
            yield each
            held.append(sum(len(one.rows) for one in finders[0].tracks))

    finders = []
    make = identification.TrackFinder
    monkeypatch.setattr(identification, "TrackFinder", lambda folders: finders.append(make(folders)) or finders[0])
    found = identify_all(NearOrigin(), SAME, Decision(1, 0.5, 0.01), watched(), ["in"], keep_new)
    assert [len(each.rows) for each in found.tracks] == ([0, 2, 1, 0, 1] if keep_new else [0] * 5)
    assert max(held) == (4 if keep_new else 2)


def test_distances_of_tracks_are_means_of_all_pairs(monkeypatch):
    random = np.random.default_rng(0)
    tracks = []
    for number, size in enumerate((1, 3, 2, 1, 4)):
        rows = [unit(*random.normal(size=3)) for _ in range(size)]
        tracks.append(Track(None, [f"{number}-{row}" for row in range(size)], rows))
    given = []
    monkeypatch.setattr(identification, "group", lambda distances, threshold: given.append(distances) or [0] * 5)
    group_new(SimpleNamespace(settings=SETTINGS), tracks, 0.5)
    for a, one in enumerate(tracks):
        for b, other in enumerate(tracks):
            pairs = [np.linalg.norm(x.astype(float) - y.astype(float)) for x in one.rows for y in other.rows]
            assert given[0][a, b] == pytest.approx(0 if a == b else np.mean(pairs))


def test_copies_of_a_file_are_enrolled_as_one_individual(make_index, tmp_path):
    """Without --cluster, each new image would be an individual of its own, and the copy one without images."""
    index = make_index()
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"three")):
        (tmp_path / f"{name}.png").write_bytes(content)
    shutil.copy(tmp_path / "a.png", tmp_path / "z.png")
    dimension = index.settings.dimension
    features = np.eye(dimension, dtype=np.float32)
    rows = {"a": features[0], "b": features[1], "c": features[2], "z": features[0]}
    tracks = [Track(None, [f"{tmp_path / name}.png"], [row]) for name, row in rows.items()]
    names = enroll(index, tracks, [0, 1, 2, 3])
    assert names == ["new-0001", "new-0002", "new-0003", "new-0001"]
    assert index.identities() == [("new-0001", 1), ("new-0002", 1), ("new-0003", 1)]


def test_no_distance_is_negative():
    """Rounding of unit vectors would make the cosine distance of equal images -1e-8, which P(same) refuses."""
    settings = IndexSettings(model="m", fingerprint="f", dimension=64, distance="cosine")
    vectors = settings.prepare(np.random.default_rng(0).normal(size=(200, 64)))
    own = [settings.distances(each, each[None])[0] for each in vectors]
    assert min(own) == 0 and max(own) < 1e-6
