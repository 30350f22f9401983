"""Tracks: images that are known to show one individual."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dual_cross_attention.inference.prediction import Embedding


@dataclass(frozen=True)
class Track:
    """Images that show one individual.

    Args:
        name: the folder that they are in; None of an image alone.
        paths: of M images, all of which can be read.
        features: (M, D).
    """

    name: str | None
    paths: list[str]
    features: np.ndarray


def find_tracks(embeddings: Sequence[Embedding], folders: Sequence[str]) -> tuple[list[Track], list[int | None]]:
    """Tracks of images: those in the same subfolder of one of some folders; any other image is one alone.

    Args:
        embeddings: of the images.
        folders: those whose subfolders are tracks; images that are directly in them are not of a track.

    Returns:
        The tracks in the order of their first images, and for each image the number of its track; None of images that
        cannot be read.
    """
    tops = [Path(folder) for folder in folders]
    numbers: list[int | None] = []
    members: list[list[Embedding]] = []
    names: list[str | None] = []
    number_of: dict[str, int] = {}
    for each in embeddings:
        if each.error is not None:
            numbers.append(None)
            continue
        parent = Path(each.path).parent
        name = os.fspath(parent) if any(parent != top and parent.is_relative_to(top) for top in tops) else None
        number = len(names) if name is None else number_of.setdefault(name, len(names))
        if number == len(names):
            names.append(name)
            members.append([])
        members[number].append(each)
        numbers.append(number)
    tracks = [
        Track(name, [each.path for each in own], np.stack([each.feature for each in own]))
        for name, own in zip(names, members, strict=True)
    ]
    return tracks, numbers
