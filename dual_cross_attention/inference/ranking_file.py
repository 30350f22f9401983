"""The gallery as each query ranks it, as a file for people and programs."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from torch import Tensor

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.data import ReIDData
from dual_cross_attention.data.images import ImageSource
from dual_cross_attention.errors import InputError


def write_ranking(
    path: Path, data: ReIDData, ranking: Iterable[tuple[int, Tensor, Tensor]], *, depth: int | None = None
) -> None:
    """JSON Lines, a query a line, with "format_version", "query": file, "gallery": [file, …], "distances": […] and
    "matches": [true, …].

    The gallery is in the order in which the query ranks it, the nearest first, without what the protocol leaves out:
    the same identity under the same camera, or without cameras the query's own file. Files are relative to the folder
    that holds query and gallery; a synthetic image has a number for a name, and a crop has its box after the file.

    Args:
        path: the file; written beside and then renamed.
        data: the test split that was ranked.
        ranking: for each query, its position, those of the gallery, and their distances: see `ReIDTask.rank`.
        depth: the nearest so many only; None: all of the gallery.

    Raises:
        InputError: the file cannot be written.
    """
    identities = [*data.query.identities, *data.gallery.identities]
    names = _names([*data.query.images, *data.gallery.images])
    try:
        with atomic_write(path) as temporary, temporary.open("w") as file:
            for query, gallery, distances in ranking:
                found = gallery[:depth].tolist()
                line = {
                    "format_version": FORMAT_VERSION,
                    "query": names[query],
                    "gallery": [names[position] for position in found],
                    "distances": [round(distance, 6) for distance in distances[:depth].tolist()],
                    "matches": [identities[position] == identities[query] for position in found],
                }
                file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise InputError(f"--save_ranking: cannot write '{path}': {error.strerror}") from error


def _names(images: list[ImageSource]) -> list[str]:
    if any(isinstance(image, Image.Image) for image in images):
        return [f"{number}" for number in range(len(images))]
    absolute = [os.path.abspath(f"{image}") for image in images]
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return [os.path.relpath(path, root) for path in absolute]
