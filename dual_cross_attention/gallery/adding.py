"""Adds image files to an index: hashes them, computes the features of those without a vector, and commits once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from dual_cross_attention.data.duplicates import digest_file
from dual_cross_attention.gallery.index import Added, GalleryImage, GalleryIndex
from dual_cross_attention.gallery.sources import NamedImage
from dual_cross_attention.inference.prediction import Embedding
from dual_cross_attention.progress import track

STAGED_AT_ONCE = 1024
"""Features that are stored together; an interrupted command loses at most so many."""
Embed = Callable[[Iterator[str]], Iterator[Embedding]]
"""From paths to their embeddings, in order."""


@dataclass
class AddedFiles:
    """What was done with image files, and (path, reason) of those that cannot be read."""

    images: Added
    computed: int
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def add_files(
    index: GalleryIndex,
    embed: Embed,
    files: Sequence[NamedImage],
    console: Console,
    computed_by: str | None = None,
) -> AddedFiles:
    """Makes files part of the gallery: all that can be read, or none if the process ends before.

    Features that are computed stay stored, so that the same command, repeated, computes the others only.

    Args:
        index: to add to.
        embed: computes features; called once.
        files: what to add.
        console: shows progress.
        computed_by: see `GalleryIndex.stage`.
    """
    with index.writing():
        images, unreadable = _hashed(files, console)
        new = [images[position] for position in index.missing([image.digest for image in images])]
        embeddings = track(embed(image.path for image in new), "features", len(new), console)
        computed = 0
        pairs = zip(new, embeddings, strict=True)
        while some := list(islice(pairs, STAGED_AT_ONCE)):
            unreadable += [(image.path, one.error) for image, one in some if one.error]
            done = [(image.digest, one.feature) for image, one in some if not one.error]
            if done:
                features = np.stack([feature for _, feature in done])
                index.stage([digest for digest, _ in done], features, computed_by)
            computed += len(done)
        return AddedFiles(index.add(images), computed, unreadable)


def _hashed(files: Sequence[NamedImage], console: Console) -> tuple[list[GalleryImage], list[tuple[str, str]]]:
    images, unreadable = [], []
    for path, identity in track(files, "hashes", len(files), console):
        try:
            images.append(GalleryImage(path, identity, digest_file(Path(path))))
        except (OSError, ValueError) as error:
            unreadable.append((path, f"{getattr(error, 'strerror', None) or error}"))
    return images, unreadable
