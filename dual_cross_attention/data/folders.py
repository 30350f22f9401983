"""Finding a data set's folder, and saying what is there instead."""

import os
from pathlib import Path

from dual_cross_attention.messages import printable

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Of files that are taken for pictures, in any case."""


def own_folder(data_root: Path, name: str, marker: str) -> Path | None:
    """The folder that has `marker` (a path in it): `data_root` itself or its subfolder `name`; None if neither does."""
    for folder in (data_root, data_root / name):
        if (folder / marker).exists():
            return folder
    return None


def holding_folder(data_root: Path, name: str) -> Path:
    """The folder that holds the folder `name`, where `data_root` is either of the two."""
    absolute = Path(os.path.abspath(data_root))  # "." has a name then
    for folder in (absolute, absolute.resolve()):
        if folder.name == name:
            return folder.parent
    return data_root


def picture_files(folder: Path) -> list[Path]:
    """The pictures right in a folder, sorted by name; hidden files and those without a usual extension are left out."""
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in EXTENSIONS and path.name[0] != "."]


def what_is_in(folder: Path, shown: int = 6) -> str:
    """What a folder holds, in a few words, for an error message."""
    if not os.path.exists(folder):  # False too for what cannot be a name
        return "it does not exist"
    if not folder.is_dir():
        return "it is not a folder"
    names = sorted(printable(f"{entry.name}/" if entry.is_dir() else entry.name) for entry in folder.iterdir())
    if not names:
        return "it is empty"
    return f"it holds {', '.join(names[:shown])}{f' and {len(names) - shown} more' if len(names) > shown else ''}"
