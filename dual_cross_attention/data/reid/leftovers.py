"""Images in the folder of a split that the layout does not take: counted and named, so that none is left out unsaid."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dual_cross_attention.data.folders import EXTENSIONS
from dual_cross_attention.text import printable
from dual_cross_attention.untrusted_files import open_regular

OTHER_EXTENSIONS = {
    *(".apng", ".arw", ".avif", ".cr2", ".dib", ".dng", ".exr", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe"),
    *(".jxl", ".nef", ".pbm", ".pgm", ".pnm", ".psd", ".tga"),
}
"""Of images that are not read."""
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
"""How files of the formats that are read begin."""


def leftovers(where: str, folder: Path, taken: Iterable[Path], depth: int, listed_in: str | None = None) -> list[str]:
    """A line for each kind of image in `folder` or below that is not taken; hidden files and folders are none.

    Args:
        where: the dataset and the folder, for messages.
        folder: of a split.
        taken: the files that are, or of which another line says why they are not.
        depth: how many folders down the layout has its images: 0 right in `folder`, 1 in folders of it.
        listed_in: the file that lists the images of the split; None: all at `depth` are taken.
    """
    known = {os.path.abspath(path) for path in taken}
    kinds: dict[str, list[str]] = {}
    for path, levels in _files(folder):
        is_image = path.suffix.lower() in EXTENSIONS
        if not (is_image or _looks_like_an_image(path)) or os.path.abspath(path) in known:
            continue
        if not is_image:
            kind = "of a format or an extension that is not read"
        elif listed_in:
            kind = f"not in {listed_in}"
        elif levels > depth:
            kind = "in subfolders of an identity's folder" if depth else "in subfolders"
        else:
            kind = "outside of an identity's folder"
        kinds.setdefault(kind, []).append(f"{path.relative_to(folder)}")
    return [
        f"{where}: {len(names):,} image{'s are' if len(names) > 1 else ' is'} left out, {kind}, such as "
        f"{printable(min(names))}"
        for kind, names in kinds.items()
    ]


def found_instead(folder: Path, depth: int) -> str:
    """What `leftovers` finds where nothing is taken, for an error: "; 3 images are left out, in subfolders, ..."."""
    lines = leftovers("", folder, [], depth) if folder.is_dir() else []
    return "".join(f"; {line.removeprefix(': ')}" for line in lines)


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Files with how many folders down they are, in any order. Links are followed, each folder is visited once."""
    visited: set[tuple[int, int]] = set()
    waiting = [(folder, 0)]
    while waiting:
        here, levels = waiting.pop()
        try:
            status = here.stat()
            entries = list(os.scandir(here))
        except OSError:  # a folder that may not be listed
            continue
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                waiting.append((Path(entry.path), levels + 1))
            else:
                yield Path(entry.path), levels


def _looks_like_an_image(path: Path) -> bool:
    """By its extension; without any, by its first bytes."""
    if path.suffix:
        return path.suffix.lower() in OTHER_EXTENSIONS
    try:
        with open_regular(path) as file:
            return file.read(4).startswith(SIGNATURES)
    except (OSError, ValueError):
        return False
