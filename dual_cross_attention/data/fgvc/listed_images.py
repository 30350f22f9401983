"""Images that lists name, and what is wrong with them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dual_cross_attention.data.listed_paths import absent
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape


class ListedImage(NamedTuple):
    """An image that a list names.

    Args:
        where: the list and line, for errors.
        path: the file.
        label: class as written: an id or a name.
        coarse: coarse class as written; empty: none.
    """

    where: str
    path: Path
    label: str
    coarse: str


def check_once(images: Sequence[ListedImage]) -> None:
    """Raises InputError for an image that is listed a second time."""
    seen: dict[Path, ListedImage] = {}
    for image in images:
        if (first := seen.setdefault(image.path, image)) is not image:
            line = first.where.rpartition(" ")[2]
            raise InputError(f"{image.where}: {escape(image.path)} is listed in line {line} already")


def check_exist(images: Sequence[ListedImage]) -> None:
    """Raises InputError for the first image that does not exist."""
    if gone := {*absent([image.path for image in images])}:
        first = next(image for image in images if image.path in gone)
        count = f"{len(gone):,} of {len(images):,}"
        raise InputError(f"{first.where}: {escape(first.path)} does not exist; {count} images do not exist")


def in_both(
    source: str,
    train: Mapping[Path, str],
    test: Mapping[Path, str],
    names: tuple[str, str],
) -> list[str]:
    """Warnings about images that are in both splits, and about those that have another class there.

    Args:
        source: name of the dataset.
        train, test: class names of the images by their files.
        names: of the splits.
    """
    both = sorted(train.keys() & test.keys())
    if not both:
        return []
    lines = [f"{source}: {len(both):,} images are in {names[0]} and in {names[1]}, such as {escape(both[0])}"]
    if other := [path for path in both if train[path] != test[path]]:
        first = other[0]
        lines.append(
            f"{source}: {len(other):,} of these have one class in {names[0]} and another one in {names[1]}, such as "
            f"{escape(first)}: {escape(train[first])} and {escape(test[first])}"
        )
    return lines
