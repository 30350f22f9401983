"""Enrolls new individuals: adds their images to an index under new names."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dual_cross_attention.data.duplicates import digest_file
from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery.cluster import in_order
from dual_cross_attention.gallery.index import GalleryImage, GalleryIndex
from dual_cross_attention.gallery.tracks import Track
from dual_cross_attention.text import escape

NEW_NAME = re.compile(r"new-(\d{1,9})")


def new_names(index: GalleryIndex, number: int) -> list[str]:
    """Names for so many new individuals, new-0001 and so on, after those that the index has."""
    used = [int(found[1]) for name, _ in index.identities() if (found := NEW_NAME.fullmatch(name))]
    first = max(used, default=0) + 1
    return [f"new-{first + each:04d}" for each in range(number)]


def enroll(
    index: GalleryIndex, tracks: Sequence[Track], groups: Sequence[int], computed_by: str | None = None
) -> list[str]:
    """Adds images of new individuals to an index: all of them, or none.

    Tracks with a file of the same content are of one individual.

    Args:
        index: to add to.
        tracks: images of new individuals.
        groups: the number of each track's individual, from 0 on.
        computed_by: see `GalleryIndex.stage`.

    Returns:
        The name of each track's individual.

    Raises:
        InputError: a file cannot be read any more, or the index cannot be written.
    """
    paths = [path for track in tracks for path in track.paths]
    if not paths:
        return []
    try:
        digests = [digest_file(Path(path)) for path in paths]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"an image to enroll cannot be read: {escape(reason)}; no image is enrolled") from error
    features = np.concatenate([track.features for track in tracks])
    of_image = np.repeat(np.arange(len(tracks)), [len(track.paths) for track in tracks])
    groups = _joined(groups, of_image.tolist(), digests)
    with index.writing():
        by_group = new_names(index, len({*groups}))
        names = [by_group[group] for group in groups]
        missing = index.missing(digests)
        index.stage([digests[place] for place in missing], features[missing], computed_by)
        index.add(
            [
                GalleryImage(os.path.abspath(path), names[track], digest)
                for path, track, digest in zip(paths, of_image.tolist(), digests, strict=True)
            ]
        )
    return names


def _joined(groups: Sequence[int], of_image: Sequence[int], digests: Sequence[bytes]) -> list[int]:
    """The groups of tracks, joined where images of both have the same digest, numbered from 0 on.

    Args:
        groups: of each track.
        of_image: the track of each image.
        digests: of each image.
    """
    joined, first = [*groups], dict[bytes, int]()
    for track, digest in zip(of_image, digests, strict=True):
        kept, own = joined[first.setdefault(digest, track)], joined[track]
        if kept != own:
            joined = [kept if each == own else each for each in joined]
    return in_order(joined)
