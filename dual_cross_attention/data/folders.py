"""Finds the folder of a dataset, and describes what a folder contains."""

import os
from collections.abc import Callable
from pathlib import Path

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Extensions of image files, in any case."""
OFFICIAL_NAMES = {
    "CUB_200_2011",
    "stanford_cars",
    "fgvc-aircraft-2013b",
    "Market-1501-v15.09.15",
    "DukeMTMC-reID",
    "MSMT17_V1",
    "MSMT17_V2",
    "VeRi",
}
"""Folder names of released datasets, so that one is not taken for another with equal file names."""
ARCHIVERS_OWN = "__MACOSX"
"""A folder that macOS adds to zip archives; it holds no data."""


def absolute(path: Path) -> Path:
    """Returns the absolute path. Links are kept, except those before a `..`, which leads up from where
    they point to.

    Raises:
        OSError: the path is relative, and the working directory does not exist any more.
    """
    parts = (Path.cwd() / path).parts
    if ".." not in parts:
        return Path(*parts)
    after = len(parts) - parts[::-1].index("..")
    try:
        return Path(os.path.realpath(Path(*parts[:after])), *parts[after:])
    except ValueError:  # no file can have that name, which is said where it is opened
        return Path(*parts)


def own_folder(data_root: Path, name: str, marker: str, wrapped: bool = True) -> Path | None:
    """The folder of a dataset in its official layout, which has `marker` (a path in it).

    Searches `data_root`, its subfolder NAME, NAME/NAME (as archives unpack), ANY/NAME (collections of datasets), and
    with `wrapped` also the only folder in `data_root`, unless it has another dataset's official name.

    Args:
        data_root: where to look.
        name: the official name of the folder.
        marker: a path that only the dataset's own folder has.
        wrapped: whether a folder of another name is accepted.

    Returns:
        None if there is none.

    Raises:
        InputError: several ANY/NAME.
        OSError: `data_root` cannot be listed.
    """
    for folder in (data_root, data_root / name, data_root / name / name):
        if os.path.exists(folder / marker):
            return folder
    found = [folder / name for folder in subfolders(data_root) if os.path.exists(folder / name / marker)]
    if len(found) > 1:
        raise InputError(
            f"expected one folder {name} below {escape(data_root)}, found {len(found)}: give data_root one of "
            f"{escape(found[0])}, {escape(found[1])}"
        )
    if found:
        return found[0]
    found = unwrapped(data_root, lambda folder: os.path.exists(folder / marker)) if wrapped else None
    return None if found is None or found.name in OFFICIAL_NAMES - {name} else found


def unwrapped(data_root: Path, is_it: Callable[[Path], bool], levels: int = 2) -> Path | None:
    """`data_root`, or else the only folder in it (or the only one in that), of which `is_it` is true; None if none."""
    folder = data_root
    for _ in range(levels + 1):
        if is_it(folder):
            return folder
        inner = subfolders(folder)
        if len(inner) != 1:
            return None
        folder = inner[0]
    return None


def undoubled(folder: Path) -> Path:
    """`folder`, or the folder of the same name in it if there is nothing else: images/images, as archives unpack."""
    inner = folder / folder.name
    if not inner.is_dir():
        return folder
    others = [entry.name for entry in os.scandir(folder) if entry.name[0] != "." and entry.name != ARCHIVERS_OWN]
    return inner if others == [folder.name] else folder


def inner_folder_lines(dataset: str, found: Path, given: Path, *usual: Path) -> list[str]:
    """Returns one line if the folder that is read is neither the given one nor one of `usual`, else an empty list."""
    if found in (given, *usual):
        return []
    return [f"{dataset}: {escape(found)} is read, found in {escape(given)}"]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none if it is no folder. Hidden ones and `ARCHIVERS_OWN` are left out.

    Raises:
        OSError: it cannot be listed.
    """
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and is_visible(entry.name)]
    return [folder / name for name in sorted(names)]


def is_visible(name: str) -> bool:
    """Whether a file or folder is not hidden."""
    return not name.startswith(".") and name != ARCHIVERS_OWN


def holding_folder(data_root: Path, name: str) -> Path:
    """The folder that holds the folder `name`, where `data_root` is either of the two."""
    for folder in (data_root, data_root.resolve()):
        if folder.name == name:
            return folder.parent
    return data_root


def image_files(folder: Path) -> list[Path]:
    """The images right in a folder, sorted by name; hidden files and those without a usual extension are left out."""
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in EXTENSIONS and path.name[0] != "."]


def what_is_in(folder: Path, shown: int = 6) -> str:
    """Describes the content of a folder for an error message."""
    if not os.path.exists(folder):  # False too for what cannot be a name
        return "it does not exist"
    if not folder.is_dir():
        return "it is not a folder"
    names = sorted(escape(f"{entry.name}/" if entry.is_dir() else entry.name) for entry in folder.iterdir())
    if not names:
        return "it is empty"
    return f"it holds {', '.join(names[:shown])}{f' and {len(names) - shown} more' if len(names) > shown else ''}"
