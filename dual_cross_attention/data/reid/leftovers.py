"""Warnings about images in a split's folder that the layout does not read."""

import os
from collections.abc import Iterable
from pathlib import Path

from dual_cross_attention.data.listing import left_out_warnings, list_images
from dual_cross_attention.text import escape


def leftovers(where: str, folder: Path, taken: Iterable[Path], depth: int, listed_in: str | None = None) -> list[str]:
    """Returns a line for each kind of image in or below `folder` that is left out, or one that says why it cannot be
    listed.

    Args:
        where: the dataset and the folder, for messages.
        folder: of a split.
        taken: files below `folder` that are taken, or that another warning is about.
        depth: level of the layout's images: 0 directly in `folder`, 1 in its subfolders.
        listed_in: the file that lists the images of the split; None: all at `depth` are taken.
    """
    known = {os.fspath(path) for path in taken}
    try:
        found = list_images(folder, known=known)
    except OSError as error:
        path = escape(error.filename or folder)
        return [f"{where}: {path} cannot be listed ({error.strerror}): images that are left out are not counted"]
    kinds: dict[str, list[Path]] = {}
    for path in found.images:
        kinds.setdefault(_kind(len(path.relative_to(folder).parts) - 1, depth, listed_in), []).append(path)
    lines = [
        f"{where}: {len(paths):,} image{'s are' if len(paths) > 1 else ' is'} left out, {kind}, such as "
        f"{escape(min(paths).relative_to(folder))}"
        for kind, paths in kinds.items()
    ]
    if found.repeated:  # folders of two identities may link to the same folder; both are read
        read = {os.path.dirname(path) for path in known}
        found.repeated = [path for path in found.repeated if os.fspath(path) not in read]
    return lines + left_out_warnings(where, found)


def describe_left_out(folder: Path, depth: int) -> str:
    """What `leftovers` finds if nothing is taken, for an error message: "; 3 images are left out, in subfolders,
    ..."."""
    lines = leftovers("", folder, [], depth) if folder.is_dir() else []
    return "".join(f"; {line.removeprefix(': ')}" for line in lines)


def _kind(levels: int, depth: int, listed_in: str | None) -> str:
    """Says why an image `levels` folders down is left out."""
    if listed_in:
        return f"not in {listed_in}"
    if levels > depth:
        return "in subfolders of an identity's folder" if depth else "in subfolders"
    return "outside of an identity's folder"
