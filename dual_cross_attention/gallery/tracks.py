"""Tracks: images that are known to show one individual."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dual_cross_attention.inference.prediction import Embedding


@dataclass
class Track:
    """Images that show one individual.

    Args:
        name: the folder that they are in; None of an image alone.
        paths: of M images, all of which can be read.
        rows: M features, (D,) each; empty once they are not needed.
    """

    name: str | None
    paths: list[str] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)

    @property
    def features(self) -> np.ndarray:
        """(M, D)."""
        return np.stack(self.rows)


class TrackFinder:
    """Sorts a stream of images into tracks: those in the same subfolder of one of some folders are of one track, any
    other image is one alone.

    Args:
        folders: those whose subfolders are tracks; images that are directly in them are not of a track.

    Attributes:
        tracks: in the order of their first images.
    """

    def __init__(self, folders: Sequence[str]):
        self.tops = [Path(folder) for folder in folders]
        self.tracks: list[Track] = []
        self._number_of: dict[str, int] = {}

    def add(self, embedding: Embedding) -> int:
        """The number of the track of an image that can be read, which is added to it."""
        parent = Path(embedding.path).parent
        is_below = any(parent != top and parent.is_relative_to(top) for top in self.tops)
        name = os.fspath(parent) if is_below else None
        number = len(self.tracks) if name is None else self._number_of.setdefault(name, len(self.tracks))
        if number == len(self.tracks):
            self.tracks.append(Track(name))
        self.tracks[number].paths.append(embedding.path)
        self.tracks[number].rows.append(embedding.feature)
        return number


def find_tracks(embeddings: Iterable[Embedding], folders: Sequence[str]) -> tuple[list[Track], list[int | None]]:
    """The tracks of images, and for each image the number of its track; None of images that cannot be read."""
    finder = TrackFinder(folders)
    numbers = [None if each.error else finder.add(each) for each in embeddings]
    return finder.tracks, numbers
