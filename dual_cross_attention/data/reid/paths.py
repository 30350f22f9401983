"""Paths in CSV files and lists, which may have been written on another system."""

import os
import re
import unicodedata
from pathlib import Path

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import printable
from dual_cross_attention.untrusted_files import inside

WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\[^\\]")
"""A drive letter, or the name of a server: `C:\\images`, `\\\\server\\images`."""


def listed_path(folder: Path, name: str, where: str) -> Path:
    """As `inside`; backslashes separate folders unless a file of that very name is there.

    Raises:
        InputError: it leads out of the folder, is no path, or begins with a drive letter or a server of Windows.
    """
    if "\\" in name and os.name != "nt" and os.path.lexists(folder / name):
        return inside(folder, name, where)
    if os.name != "nt" and WINDOWS_ROOT.match(name):
        kind = "a server" if name.startswith("\\\\") else f"the drive {name[:2]}"
        raise InputError(
            f"{where}: expected a path relative to {printable(folder)}, got one of Windows on {kind}, "
            f"{printable(name)!r}: remove all up to the folder that {printable(folder.name or folder)} is a copy of"
        )
    return inside(folder, name.replace("\\", "/"), where)


def as_on_disk(root: Path, missing: list[Path]) -> dict[Path, Path]:
    """Files whose names are there in another Unicode form: composed on Windows and Linux, often decomposed on macOS.

    Args:
        root: the folder that all of them are in.
        missing: paths that do not exist as they are written.

    Returns:
        Those that were found, by how they were written.
    """
    entries: dict[Path, dict[str, str]] = {}  # of a folder: each name by its composed form

    def entry(folder: Path, name: str) -> str | None:
        if folder not in entries:
            try:
                entries[folder] = {unicodedata.normalize("NFC", found): found for found in os.listdir(folder)}
            except (OSError, ValueError):
                entries[folder] = {}
        return entries[folder].get(unicodedata.normalize("NFC", name))

    found = {}
    for path in missing:
        if f"{path}".isascii() or not path.is_relative_to(root):
            continue
        there: Path | None = root
        for part in path.relative_to(root).parts:
            name = entry(there, part)
            if name is None:
                break
            there = there / name
        else:
            found[path] = there
    return found
