"""Finds the images of a command line: files, folders, glob patterns, and paths from standard input."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from dual_cross_attention.data.folders import what_is_in
from dual_cross_attention.data.listing import left_out_warnings, list_images
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

STDIN = "-"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass
class ImagePaths:
    """Paths of images, in an order that depends on their names only.

    Args:
        paths: to be iterated once; those from standard input are read lazily.
        total: number of images; None with standard input.
        warnings: about files that are left out, one line each.
    """

    paths: Iterable[str]
    total: int | None
    warnings: list[str] = field(default_factory=list)


def find_images(words: Sequence[str], stdin: BinaryIO) -> ImagePaths:
    """Resolves the words of a command line to images.

    A word is a file, a folder (all images below it, by their extension), a glob pattern (`**` for any folders), or `-`:
    paths from standard input, one a line. A word that exists is not taken for a pattern.

    Raises:
        InputError: no words, no such file, or a folder, pattern or standard input without images.
    """
    if not words:
        raise InputError("expected images: files, folders, patterns such as 'photos/**/*.jpg', or - for standard input")
    found = ImagePaths([], 0)
    parts: list[Iterable[str]] = []
    for word in words:
        if word == STDIN:
            parts.append(_lines(stdin, is_needed=len(words) == 1))
            found.total = None
            continue
        paths = _paths_of(word, found.warnings)
        parts.append(paths)
        found.total = None if found.total is None else found.total + len(paths)
    found.paths = chain.from_iterable(parts)
    return found


def _paths_of(word: str, warnings: list[str]) -> list[str]:
    if os.path.isdir(word):
        return _below(word, warnings)
    if os.path.lexists(word):
        return [word]
    if not glob.has_magic(word):
        raise InputError(f"no file or folder '{escape(word)}'; searched in {escape(os.getcwd())}")
    paths: list[str] = []
    for match in sorted(glob.glob(word, recursive=True)):
        if not os.path.isdir(match):
            paths.append(match)
        elif "**" not in word:  # its matches include folders and their content
            paths += _below(match, warnings)
    if not paths:
        raise InputError(f"no file matches the pattern '{escape(word)}'")
    return paths


def _below(folder: str, warnings: list[str]) -> list[str]:
    try:
        listing = list_images(Path(folder))
    except OSError as error:
        raise InputError(f"'{escape(error.filename or folder)}' cannot be listed: {error.strerror}") from error
    said = left_out_warnings(escape(folder), listing)
    if not listing.images:
        holds = "; ".join(said) or what_is_in(Path(folder))
        raise InputError(f"'{escape(folder)}' holds no image: {holds}")
    warnings += said
    return [os.fspath(path) for path in listing.images]


def _lines(stdin: BinaryIO | None, is_needed: bool) -> Iterator[str]:
    """Yields the non-empty lines of standard input."""
    if stdin is None:
        raise InputError("standard input is closed: expected the path of an image in each line")
    is_empty = True
    for line in stdin:
        if is_empty:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line := line.rstrip(b"\r\n"):
            is_empty = False
            yield os.fsdecode(line)
    if is_empty and is_needed:
        raise InputError("standard input holds no path: expected the path of an image in each line")
