"""Images to add to a gallery: a folder with a subfolder per identity, a CSV file, or single files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dual_cross_attention.data.boxes import MISSING
from dual_cross_attention.data.folders import what_is_in
from dual_cross_attention.data.listed_paths import listed_path
from dual_cross_attention.data.listing import left_out_warnings, list_images
from dual_cross_attention.data.tables import read_rows
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape


class NamedImage(NamedTuple):
    """The absolute path of an image, and its identity; None: unknown."""

    path: str
    identity: str | None


def find_named_images(source: str, notes: list[str], identity: str | None = None) -> list[NamedImage]:
    """The images that a word of the command line names, with their identities.

    - A folder: the identity of an image is the name of the subfolder of `source` that it is in, at any depth. Images in
      the folder itself have none.
    - A CSV file with the columns identity and path, see `read_csv`.
    - An image file, which has no identity.

    Args:
        source: path of the folder or file.
        notes: a line is added on what is left out or unknown.
        identity: of all these images; None: as above.

    Raises:
        InputError: nothing is there, no image is, or the CSV file cannot be read.
    """
    path = Path(os.path.abspath(source))
    if path.is_dir():
        images = _in_folder(path, notes)
    elif not path.exists():
        raise InputError(f"no file or folder '{escape(source)}'; it is in {escape(os.getcwd())} that it was looked for")
    elif path.suffix.lower() == ".csv":
        images = read_csv(path, notes)
    else:
        images = [NamedImage(f"{path}", None)]
    if identity is not None:
        return [image._replace(identity=identity) for image in images]
    unknown = sum(image.identity is None for image in images)
    if unknown:
        hint = (
            "images of a folder are given one by subfolders or by --identity" if path.is_dir() else "--identity sets it"
        )
        notes.append(f"{unknown:,} of {len(images):,} images of '{escape(source)}' have no identity: {hint}")
    return images


def _in_folder(folder: Path, notes: list[str]) -> list[NamedImage]:
    try:
        listing = list_images(folder)
    except OSError as error:
        raise InputError(f"'{escape(error.filename or folder)}' cannot be listed: {error.strerror}") from error
    warnings = left_out_warnings(escape(folder), listing)
    if not listing.images:
        raise InputError(f"'{escape(folder)}' holds no image: {'; '.join(warnings) or what_is_in(folder)}")
    notes += warnings
    found = []
    for image in listing.images:
        first, *rest = image.relative_to(folder).parts
        found.append(NamedImage(f"{image}", first if rest else None))
    return found


def read_csv(path: Path, notes: list[str]) -> list[NamedImage]:
    """The images of a CSV file with the columns path and identity; a missing or empty identity is unknown.

    Images are read whole: a note says so if the file has boxes. Columns and separator are as in
    `data.tables.read_rows`. Paths are relative to the folder of the file, and must not lead out of it.

    Raises:
        InputError: the file cannot be read, lists no image, or has a row without a path or with too many fields.
    """
    found, boxes = [], 0
    for line, fields in read_rows(path, ["path"], "gallery", notes, optional=["identity", "bbox"]):
        boxes += fields["bbox"].casefold() not in MISSING
        image = listed_path(path.parent, fields["path"], f"gallery: {escape(path)}, line {line}")
        found.append(NamedImage(os.path.abspath(image), fields["identity"] or None))
    if boxes:
        notes.append(
            f"{boxes:,} of {len(found):,} rows of '{escape(path)}' have a bbox, which an index does not read: images "
            "are compared whole, so crop the files if the model was trained on crops"
        )
    return found


def absolute_paths(words: Sequence[str]) -> list[str]:
    """Paths of the command line as an index stores them."""
    return [os.path.abspath(word) for word in words]


def shown_path(path: str) -> str:
    """A path of an index for output: relative to the current folder if it is below it, else absolute."""
    relative = os.path.relpath(path) if os.path.splitdrive(path)[0] == os.path.splitdrive(os.getcwd())[0] else path
    return path if relative.startswith(os.pardir) else relative
