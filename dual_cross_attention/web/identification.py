"""What an index says of an uploaded image: nearest images, the decision at any threshold, and enrolling it."""

import hashlib
import math
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.data.duplicates import digest_file
from dual_cross_attention.data.images import UnreadableImage, open_image
from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery.identify import Answer, Decision, decide_by, identify
from dual_cross_attention.gallery.index import GalleryImage, GalleryIndex, Match
from dual_cross_attention.gallery.models import computed_by
from dual_cross_attention.gallery.rows import IDENTITY_COLUMNS, MATCH_COLUMNS, identity_row, match_rows
from dual_cross_attention.gallery.tracks import Track, find_tracks
from dual_cross_attention.inference.loaded_model import LoadedModel
from dual_cross_attention.inference.prediction import Embedding
from dual_cross_attention.inference.row_files import Row
from dual_cross_attention.web.uploads import Progress, Upload, answer_each, check_size, no_progress

NEAREST = 8
"""Gallery images that the page shows."""
MATCHES = 10
"""Gallery images of each of several images, as `dcal search` finds."""
LONGEST_IDENTITY = 200
FOLDER = "enrolled"
"""Folder in that of the index, with copies of the images that the page enrolled."""


@dataclass(frozen=True)
class Identification:
    """What an index says of one image.

    Args:
        upload: the image.
        feature: (1, D).
        matches: nearest gallery images.
        answer: of `identify`; None where the model is not calibrated for identification.
        decision: likewise.
        error: why there is no answer; None if there is one.
    """

    upload: Upload
    feature: np.ndarray | None = None
    matches: tuple[Match, ...] = ()
    answer: Answer | None = None
    decision: Decision | None = None
    error: str | None = None

    def at(self, threshold: float) -> Answer:
        """The answer at another threshold."""
        is_known = self.answer.distance is not None and self.answer.distance <= threshold
        return replace(self.answer, is_known=is_known)


def identify_upload(model: LoadedModel, folder: str | Path, upload: Upload) -> Identification:
    """Searches an index as `dcal search` and `dcal identify` do."""
    try:
        check_size(upload)
        # Opened for each image: other processes may have written, and SQLite's connection is of one thread.
        with closing(GalleryIndex.open(folder)) as index:
            embedding = next(model.embeddings([upload.path], index.settings.branch))
            if embedding.error:
                return Identification(upload, error=f"This image cannot be read: {embedding.error}")
            feature = embedding.feature[None]
            matches = tuple(index.search(feature, NEAREST)[0])
            found = Identification(upload, feature, matches)
            try:
                decision = decide_by(index, model.calibration)
                answer = identify(index, model.calibration, decision, [Track(None, [upload.path], [*feature])])[0]
            except InputError as error:  # not calibrated, or not for so many identities
                return replace(found, error=f"{error}")
            return replace(found, answer=answer, decision=decision)
    except InputError as error:
        return Identification(upload, error=f"{error}")


@dataclass(frozen=True)
class Identities:
    """What an index says of several images.

    Args:
        rows: as `dcal identify` writes them, each image alone; without a calibration, as `dcal search` writes them.
        columns: of the rows.
        error: why there is no decision; None if there is one.
    """

    rows: list[Row]
    columns: dict[str, str]
    error: str | None = None


def identify_images(
    model: LoadedModel, folder: str | Path, uploads: Sequence[Upload], progress: Progress = no_progress
) -> Identities:
    """Identifies uploaded images, see `answer_each`."""
    with closing(GalleryIndex.open(folder)) as index:
        embeddings = answer_each(
            uploads, lambda paths: model.embeddings(paths, index.settings.branch), Embedding, progress
        )
        tracks, numbers = find_tracks(embeddings, folders=[])
        each = [*zip(embeddings, numbers, strict=True)]
        try:
            answers = identify(index, model.calibration, decide_by(index, model.calibration), tracks)
        except InputError as error:  # not calibrated, or not for so many identities
            found = index.search(np.concatenate([track.features for track in tracks]), MATCHES) if tracks else []
            rows = [
                row
                for image, number in each
                for row in match_rows(image.path, [] if number is None else found[number], image.error)
            ]
            return Identities(rows, MATCH_COLUMNS, f"{error}")
    rows = [
        identity_row(image.path, None if number is None else answers[number], image.error) for image, number in each
    ]
    return Identities(rows, IDENTITY_COLUMNS)


def false_positive_rate(calibration: Any, decision: Decision, threshold: float, branch: str | None) -> float:
    """Expected false-positive identification rate of a gallery at a threshold.

    From the calibrated thresholds t(M) for galleries of M identities, each of which has the same rate f: the share of
    pairs below t(M) is 1 − (1 − f)^(1/M), if identities are independent, and N of them find one with probability
    1 − (1 − f)^(N/M). M is interpolated linearly in the logarithm; beyond the calibrated thresholds the nearest is
    taken.
    """
    if threshold == decision.threshold:
        return decision.fpir
    sizes = [*calibration.gallery_sizes]
    thresholds = [calibration.threshold(size, branch) for size in sizes]
    if decision.gallery_size not in sizes:  # on the interpolated curve, or beyond its end
        sizes, thresholds = [*sizes, decision.gallery_size], [*thresholds, decision.threshold]
    order = np.argsort(thresholds, kind="stable")
    logarithm = np.interp(threshold, np.array(thresholds)[order], np.log(sizes)[order])
    return float(1 - (1 - decision.fpir) ** (decision.gallery_size / math.exp(logarithm)))


def enroll_upload(folder: str | Path, found: Identification, identity: str, model: LoadedModel | None = None) -> str:
    """Adds an uploaded image to an index, and a copy of its file to `FOLDER`; what was done, in a line.

    Args:
        model: that computed the feature; None: the one that the index was built with.

    Raises:
        InputError: a name that cannot be one, or an index that cannot be written.
    """
    identity = identity.strip()
    if not 1 <= len(identity) <= LONGEST_IDENTITY or not identity.isprintable():
        raise InputError(f"identity: expected a name of 1 to {LONGEST_IDENTITY} printable characters")
    source = Path(found.upload.path)
    try:
        digest = digest_file(source)
        with open_image(source) as opened:
            suffix = f".{opened.format.lower()}"
        # Named by its content: the name that it was uploaded with leads nowhere.
        copy = Path(os.path.abspath(folder)) / FOLDER / f"{hashlib.sha256(digest).hexdigest()[:32]}{suffix}"
        copy.parent.mkdir(exist_ok=True)
        with atomic_write(copy) as temporary:
            temporary.write_bytes(source.read_bytes())
    except (OSError, UnreadableImage) as error:
        raise InputError(f"cannot enroll the image: {getattr(error, 'strerror', None) or error}") from error
    with closing(GalleryIndex.open(folder)) as index, index.writing():
        if index.missing([digest]):
            index.stage([digest], found.feature, None if model is None else computed_by(model, index.settings))
        done = index.add([GalleryImage(f"{copy}", identity, digest)])
        stays = next((kept for *_, kept in done.conflicts), None)
    if stays is not None or (done.copies and not done.reassigned):
        copy.unlink(missing_ok=True)
        return f"The gallery has this image already{'' if stays is None else f', as {stays}'}: nothing was changed."
    before = ", instead of the identity that it had" if done.reassigned else ""
    return f"Enrolled as {identity}{before}."
