"""Paths in CSV files and lists, possibly written on another operating system, and which of them do not exist."""

import os
import re
from pathlib import Path

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import inside

WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\[^\\]")
"""A drive letter, or the name of a server: `C:\\images`, `\\\\server\\images`."""


def listed_path(folder: Path, name: str, where: str) -> Path:
    """Like `inside`, and backslashes separate folders unless a file with that exact name exists.

    Raises:
        InputError: it leads out of the folder, is no path, or begins with a drive letter or a server of Windows.
    """
    if "\\" in name and os.name != "nt" and os.path.lexists(folder / name):
        return inside(folder, name, where)
    if os.name != "nt" and WINDOWS_ROOT.match(name):
        kind = "a server" if name.startswith("\\\\") else f"the drive {name[:2]}"
        raise InputError(
            f"{where}: expected a path relative to {escape(folder)}, got one of Windows on {kind}, "
            f"{escape(name)!r}: remove all up to the folder that {escape(folder.name or folder)} is a copy of"
        )
    return inside(folder, name.replace("\\", "/"), where)


def absent(files: list[Path]) -> list[Path]:
    """Returns the files that do not exist. Each folder is listed once: 100,000 stat calls are slow on a network
    disk."""
    names: dict[str, set[str]] = {}
    gone = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in names:
            try:
                names[folder] = set(os.listdir(folder))
            except (OSError, ValueError):  # the folder does not exist, cannot be read, or has an impossible name
                names[folder] = set()
        if name not in names[folder]:
            gone.append(file)
    return gone
