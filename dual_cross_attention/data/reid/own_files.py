"""Which gallery images are a query's own file, and byte-identical copies of it, which are not."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dual_cross_attention.data.crops import file_of
from dual_cross_attention.data.duplicates import identical_files
from dual_cross_attention.data.images import ImageSource
from dual_cross_attention.text import escape


def number_files(images: Sequence[ImageSource]) -> np.ndarray:
    """(images,) int64: equal for images of one file, links resolved, also of several crops of it.

    An image that has no file of its own, such as a member of an archive, has a number of its own.
    """
    folders: dict[str, str] = {}
    numbers: dict[str | int, int] = {}
    found = np.empty(len(images), dtype=np.int64)
    for place, image in enumerate(images):
        path = file_of(image)
        key = place if path is None else _resolved(path, folders)
        found[place] = numbers.setdefault(key, len(numbers))
    return found


def has_other_file(
    query_identities: np.ndarray, gallery_identities: np.ndarray, query_files: np.ndarray, gallery_files: np.ndarray
) -> np.ndarray:
    """(Q,) bool: whether the gallery has an image of the query's identity that is not the query's own file.

    Args:
        query_identities, query_files: (Q,) int64, identity and file number of each query.
        gallery_identities, gallery_files: (G,) int64.
    """
    there, of_identity, counts = np.unique(gallery_identities, return_inverse=True, return_counts=True)
    count = 1 + max(query_files.max(), gallery_files.max())
    pairs, times = np.unique(of_identity.reshape(-1) * count + gallery_files, return_counts=True)
    place = np.searchsorted(there, query_identities).clip(max=len(there) - 1)
    wanted = place * count + query_files
    own = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    hidden = np.where(pairs[own] == wanted, times[own], 0)
    return (there[place] == query_identities) & (counts[place] > hidden)


def describe_copies(dataset: str, images: Sequence[ImageSource], numbers: np.ndarray, num_queries: int) -> list[str]:
    """A warning about byte-identical files of query and gallery under different paths; none if there are none.

    Args:
        images: of query and gallery.
        numbers: of their files, see `number_files`.
        num_queries: the first so many are queries; all of them: each image is a query and in the gallery.
    """
    _, first = np.unique(numbers, return_index=True)
    paths = [path for place in first if (path := file_of(images[place])) is not None]
    is_query, is_gallery = set(), set()
    for place, image in enumerate(images):
        (is_query if place < num_queries else is_gallery).add(file_of(image))
    groups = []
    for group in identical_files(paths):
        files = [paths[place] for place in group]
        across = num_queries == len(images) or (not is_query.isdisjoint(files) and not is_gallery.isdisjoint(files))
        if across and os.path.getsize(files[0]):
            groups.append(files)
    if not groups:
        return []
    names = " = ".join(escape("/".join(path.parts[-3:])) for path in groups[0][:2])
    return [
        f"{dataset}: {sum(map(len, groups)):,} files of query and gallery are byte-identical copies of another path, "
        f"such as {names}: a query ignores its own path only and finds its copies at distance 0, so remove them"
    ]


def _resolved(path: Path, folders: dict[str, str]) -> str:
    """As `os.path.realpath`, which looks at each folder once."""
    if os.path.islink(path):
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)
