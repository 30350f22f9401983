"""Open-set identification: which individual of a gallery images show, or that it is a new one.

Notable:
- images of a track, which are known to show one individual, are answered together: the distance of an identity is the
  mean, over the images, of the distance of its nearest gallery image;
- the decision is on that distance, by the threshold that calibration gives for a gallery of this size.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery.cluster import MOST, group
from dual_cross_attention.gallery.index import GalleryIndex, Match
from dual_cross_attention.gallery.tracks import Track, TrackFinder
from dual_cross_attention.inference.prediction import Embedding

CANDIDATES = 10
"""Nearest gallery images of each image of a track, whose identities are compared over the whole track."""
AT_ONCE = 256
"""Images that are searched together."""


class OpenSetCalibration(Protocol):
    """What identification needs of the calibration of a model, see `ReIDCalibration`."""

    fpir: float

    def threshold(self, gallery_size: int, branch: str | None = None) -> float:
        """The largest distance at which an image is of its nearest of `gallery_size` identities."""

    def probability_same(self, distances: float, branch: str | None = None) -> float:
        """P(same) at a distance."""

    def even_distance(self, branch: str | None = None) -> float:
        """The distance at which P(same) is one half: two groups of new images are joined up to it."""


@dataclass(frozen=True)
class Answer:
    """Which individual a track shows.

    Args:
        identity: the nearest one, known or not; None if the gallery has no identity.
        is_known: whether its distance is at most the threshold.
        distance: of that identity; None if there is none.
        probability: P(same) at that distance; None if there is none.
        match: path of its nearest image; None if there is none.
    """

    identity: str | None
    is_known: bool
    distance: float | None
    probability: float | None
    match: str | None


@dataclass(frozen=True)
class Decision:
    """How a gallery decides.

    Args:
        gallery_size: number of enrolled identities.
        threshold: an image is of its nearest identity if that one's distance is at most this.
        fpir: expected false-positive identification rate: share of the images of individuals that are not enrolled
            which get an identity.
    """

    gallery_size: int
    threshold: float
    fpir: float


def decide_by(index: GalleryIndex, calibration: OpenSetCalibration | None) -> Decision:
    """The decision for a gallery as large as the index is now.

    Raises:
        InputError: the model is not calibrated for identification.
    """
    if not hasattr(calibration, "probability_same"):
        raise InputError(
            "the model of the index is not calibrated, so there is no threshold that decides which images are new: "
            "dcal calibrate MODEL --data_root DIR fits one on labeled images of identities that the model was not "
            "trained on; dcal search shows the nearest images without one"
        )
    size = index.number_of_identities()
    threshold = calibration.threshold(size, index.settings.branch) if size else math.nan
    return Decision(size, threshold, calibration.fpir)


class Seen(NamedTuple):
    """An image of a stream: its path, why it cannot be read (None: it can), and the number of its track."""

    path: str
    error: str | None
    track: int | None


class Identified(NamedTuple):
    """What `identify_all` found: the images in their order, the tracks, and an answer for each of these."""

    images: list[Seen]
    tracks: list[Track]
    answers: list[Answer]


def identify_all(
    index: GalleryIndex,
    calibration: OpenSetCalibration,
    decision: Decision,
    embeddings: Iterable[Embedding],
    folders: Sequence[str],
    keep_new: bool,
) -> Identified:
    """Answers for a stream of images.

    Features are kept for as long as they are needed: those of a single image until it is answered, those of tracks to
    the end, and with `keep_new` those of new individuals.

    Args:
        index, calibration, decision: as of `identify`.
        embeddings: of the images.
        folders: see `TrackFinder`.
        keep_new: keep the features of new individuals, to group or enroll them.
    """
    finder, images = TrackFinder(folders), []
    answers: dict[int, Answer] = {}
    waiting: list[int] = []

    def answer(numbers: Sequence[int]) -> None:
        found = identify(index, calibration, decision, [finder.tracks[number] for number in numbers])
        for number, each in zip(numbers, found, strict=True):
            answers[number] = each
            if each.is_known or not keep_new:
                finder.tracks[number].rows.clear()

    for each in embeddings:
        images.append(Seen(each.path, each.error, None if each.error else finder.add(each)))
        number = images[-1].track
        if number is not None and finder.tracks[number].name is None:
            waiting.append(number)
        if len(waiting) == AT_ONCE:
            answer(waiting)
            waiting.clear()
    answer([number for number in range(len(finder.tracks)) if number not in answers])
    return Identified(images, finder.tracks, [answers[number] for number in range(len(finder.tracks))])


def identify(
    index: GalleryIndex, calibration: OpenSetCalibration, decision: Decision, tracks: Sequence[Track]
) -> list[Answer]:
    """An answer for each track, of one image or more.

    Args:
        index: images of unknown identity are left out.
        calibration: of the model of the index.
        decision: of `decide_by`.
        tracks: with at least one feature each.
    """
    answers: dict[int, Answer] = {}
    single = [number for number, track in enumerate(tracks) if len(track.paths) == 1]
    for start in range(0, len(single), AT_ONCE):
        numbers = single[start : start + AT_ONCE]
        found = index.search(np.concatenate([tracks[number].features for number in numbers]), 1, named_only=True)
        for number, matches in zip(numbers, found, strict=True):
            answers[number] = _answer(index, calibration, decision, matches[0] if matches else None)
    for number, track in enumerate(tracks):
        if number not in answers:
            answers[number] = _answer(index, calibration, decision, _nearest_to_all(index, track.features))
    return [answers[number] for number in range(len(tracks))]


def group_new(index: GalleryIndex, tracks: Sequence[Track], threshold: float) -> list[int]:
    """Groups tracks of new individuals, see `cluster.group`; the distance of two tracks is the mean of all pairs."""
    if len(tracks) > MOST:
        raise InputError(f"--cluster: expected at most {MOST:,} new images or tracks to group, got {len(tracks):,}")
    distances = np.zeros((len(tracks), len(tracks)))
    if tracks:
        stacked = index.settings.prepare(np.concatenate([track.features for track in tracks])).astype(np.float64)
        sizes = np.array([len(track.paths) for track in tracks])
        starts = np.cumsum(sizes) - sizes
        for row, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            summed = sum(index.settings.distances(feature, stacked) for feature in stacked[start : start + size])
            distances[row] = np.add.reduceat(summed, starts) / (size * sizes)
    np.fill_diagonal(distances, 0)
    return group(distances, threshold)


def _answer(index: GalleryIndex, calibration: OpenSetCalibration, decision: Decision, match: Match | None) -> Answer:
    if match is None:
        return Answer(None, False, None, None, None)
    probability = float(calibration.probability_same(match.distance, index.settings.branch))
    return Answer(match.identity, match.distance <= decision.threshold, match.distance, probability, match.path)


def _nearest_to_all(index: GalleryIndex, features: np.ndarray) -> Match | None:
    """The nearest identity of several images together, with the mean distance and the nearest single image."""
    found = [match for matches in index.search(features, CANDIDATES, named_only=True) for match in matches]
    if not found:
        return None
    queries, settings = index.settings.prepare(features), index.settings
    vectors = index.of_identities(sorted({match.identity for match in found}))
    means = {
        identity: np.mean([settings.distances(query, own).min() for query in queries])
        for identity, own in vectors.items()
    }
    nearest = min(means, key=lambda identity: means[identity])
    image = min((match for match in found if match.identity == nearest), key=lambda match: match.distance)
    return image._replace(distance=float(means[nearest]))
