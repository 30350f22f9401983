"""Registry entries of datasets, and loading a dataset by its name."""

import difflib
import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from dual_cross_attention.configs.hub_names import HUB
from dual_cross_attention.data.crops import Box
from dual_cross_attention.data.download import Archive, Progress
from dual_cross_attention.data.download import download as fetch_archive
from dual_cross_attention.data.folders import absolute, what_is_in
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

Data = TypeVar("Data")
VARIABLE = "DCAL_DATA"
"""Environment variable: a folder that holds datasets under their official names, or one dataset's own folder."""
NEARBY = "data"
"""Subfolder of the working directory that is searched after it."""
MISSING = "no such folder"
BLANK_ROOT = "data_root was given, but is empty: is a variable of the shell not set?"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetEntry(Generic[Data]):
    """A dataset that a task knows by name.

    Args:
        description: for a list of what exists.
        load: reads it from its own folder or the one that holds it; without arguments if it has no `layout`.
        layout: the files and folders expected; None if it is synthetic, not read from disk.
        source: where to get it.
        no_download: why it cannot be downloaded from here; None if it can.
        archive: what is downloaded.
        by_pattern: whether `data_root` may be a file or a pattern of files, not a folder; `load` looks for itself then.
        find: the dataset's own folder in (or below) a folder, by its official names; None if it is not there. Without
            it, the dataset has no official names, and `data_root` is always needed.
        has_val_or_test: whether its test images are in val or test, and are read without the training images. `load`
            takes `train` and `split` then.
        takes_val_fraction: whether it may come without a split, and `load` takes `val_fraction`.
        has_hub_names: whether `data_root` may be hf:ORG/NAME, which `load` then gets as it is.
        has_columns: whether it is a table, and `load` takes `image_column` and `label_column`.
        may_have_other_classes: whether test images may be of classes that a model does not know.
        boxes: the bounding box of each image that has one, by its file, from the folder that `load` takes; empty where
            the folder has no boxes. None: the dataset has none.
        may_lack_cameras: of re-identification: whether images may have no camera, and `load` takes `cameras` and
            `bbox`.
    """

    description: str
    load: Callable[..., Data]
    layout: str | None = None
    source: str = ""
    no_download: str | None = None
    archive: Archive | None = None
    by_pattern: bool = False
    find: Callable[[Path], Path | None] | None = None
    has_val_or_test: bool = False
    takes_val_fraction: bool = False
    has_columns: bool = False
    has_hub_names: bool = False
    may_have_other_classes: bool = False
    may_lack_cameras: bool = False
    boxes: Callable[[Path], dict[Path, Box]] | None = None

    @property
    def is_synthetic(self) -> bool:
        """Whether it is generated, not read from disk."""
        return self.layout is None


def names_where(registry: Mapping[str, DatasetEntry[Any]], capability: str) -> list[str]:
    """Names of the datasets that have a capability, an attribute of `DatasetEntry`; for messages."""
    return [name for name, entry in registry.items() if getattr(entry, capability)]


def load_by_name(
    registry: Mapping[str, DatasetEntry[Data]],
    name: str,
    data_root: str | Path | None,
    download: bool = False,
    **options: Any,
) -> Data:
    """A dataset of the registry; images stay on disk until they are used.

    Args:
        registry: the datasets of a task, by name.
        name: one of them.
        data_root: the dataset's own folder, or the folder that holds it (or a pattern, see `DatasetEntry`); None: as
            `find_data_root` finds it, or for a synthetic one.
        download: fetch it into `data_root` (None: see `download_folder`) first, if it is not there.
        **options: passed on to the entry's `load`.

    Raises:
        InputError: an unknown name, a missing or wrong `data_root`, a dataset that cannot be downloaded, or one that
            cannot be used.
    """
    if name not in registry:
        raise InputError(f"unknown dataset {name!r}{_closest(name, registry)}; there are: {', '.join(registry)}")
    entry = registry[name]
    if entry.is_synthetic and data_root is not None:
        others = [known for known, other in registry.items() if not other.is_synthetic]
        raise InputError(
            f"{name} is synthetic and takes no data_root, but {data_root} was given; "
            f"did you mean the dataset {others[0]}, or folder (your own images)?"
        )
    if download and entry.no_download is not None:
        get = f"; get it from {entry.source}" if entry.source.startswith("http") else ""
        raise InputError(f"{name} cannot be downloaded from here: {entry.no_download}{get}")
    if entry.is_synthetic:
        return entry.load(**options)
    if download and entry.archive is not None:
        data_root = download_data(entry, name, registry, data_root)
    wanted = f"{name} needs data_root, a folder with {entry.layout}"
    if data_root is None and (data_root := find_data_root(registry, name)) is None:
        searched = f"; none was given, and it is not in {' nor in '.join(_searched_places())}" if entry.find else ""
        raise InputError(f"{wanted}{searched}; get it from {entry.source}")
    typed = f"{data_root}"
    if not typed.strip():
        raise InputError(f"{wanted}; {BLANK_ROOT}")
    try:
        is_hub_name = entry.has_hub_names and typed.startswith(HUB)
        root = typed if is_hub_name else absolute(Path(typed).expanduser())
    except (OSError, RuntimeError) as error:  # no working directory; an unknown user
        raise InputError(f"{wanted}; {escape(typed)} was given: {error}") from error
    try:
        return _load(entry, name, root, wanted, options)
    except InputError as error:
        if typed in f"{error}" or escape(typed) in f"{error}":
            raise
        raise InputError(f"{error} (data_root: {escape(typed)})") from error


def _load(entry: DatasetEntry[Data], name: str, root: Path | str, wanted: str, options: dict[str, Any]) -> Data:
    if not entry.by_pattern and not os.path.isdir(root):  # False too for what cannot be a name
        raise InputError(f"{wanted}; {escape(root)} was given, but {what_is_in(root)}; get it from {entry.source}")
    try:
        return entry.load(root, **options)
    except OSError as error:  # a folder that may not be listed, a link that leads to itself
        raise InputError(f"{name}: cannot read {escape(error.filename or root)}: {error.strerror or error}") from error


def download_data(
    entry: DatasetEntry[Any],
    name: str,
    registry: Mapping[str, DatasetEntry[Any]],
    data_root: str | Path | None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Downloads a dataset with an `archive`, unless it is there.

    Args:
        entry, name: the dataset, of `registry`.
        data_root: as of `load_by_name`; None: where `find_data_root` finds it, else `download_folder()`.
        progress: see `data.download`.

    Returns:
        Its folder.

    Raises:
        InputError: see `data.download.download`.
    """
    if data_root is None and (found := find_data_root(registry, name)):
        return found
    if data_root is not None and not f"{data_root}".strip():
        raise InputError(f"{name}: {BLANK_ROOT}")
    root = download_folder() if data_root is None else absolute(Path(data_root).expanduser())
    if root.is_dir() and (found := entry.find(root)):
        return found
    if root.name == entry.archive.folder:  # data_root may be the dataset's own folder
        root = root.parent
    try:
        return fetch_archive(entry.archive, root, progress)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def download_folder() -> Path:
    """Where datasets are downloaded to without a `data_root`: `$DCAL_DATA`, else `./data`; absolute."""
    return absolute(_places()[0][1].expanduser())


def find_data_root(registry: Mapping[str, DatasetEntry[Any]], name: str) -> Path | None:
    """The folder of a dataset where no `data_root` is given: in `$DCAL_DATA`, else in `./data`.

    It is logged, with a warning if `$DCAL_DATA` could not be searched.

    Args:
        registry: the datasets of a task, by name.
        name: one of them.

    Returns:
        Its own folder, absolute; None if it is in neither, or has no official names to be found by.

    Raises:
        InputError: there are several of it.
    """
    entry = registry.get(name)
    if entry is None or entry.find is None:
        return None
    passed_over = []
    for described, place in _places():
        if obstacle := _obstacle(place):
            if place != Path(NEARBY) or obstacle != MISSING:  # that there is no ./data is usual
                passed_over.append((described, obstacle))
            continue
        try:
            found = entry.find(absolute(place.expanduser()))
        except InputError as error:
            raise InputError(f"{name}: looked for in {described}: {error}") from error
        except OSError as error:  # a folder below it
            passed_over.append((described, _not_searched(error)))
            continue
        if found is not None:
            for other, why in passed_over:
                logger.warning("%s: not looked for in %s: %s", name, other, why)
            logger.info("%s: found in %s: %s", name, described, escape(found))
            return found
    return None


def _places() -> list[tuple[str, Path]]:
    """How messages name each place, and where it is."""
    given = os.environ.get(VARIABLE, "").strip()
    own = [(f"${VARIABLE} ({escape(given)})", Path(given))] if given else []
    return [*own, (f"./{NEARBY}", Path(NEARBY))]


def _obstacle(place: Path) -> str | None:
    """Why a place cannot be searched; None if it can."""
    try:
        folder = absolute(place.expanduser())
        with os.scandir(folder):
            pass
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except (OSError, RuntimeError, ValueError) as error:  # not permitted; an unknown user; it cannot be a path
        return _not_searched(error)
    return None if os.access(folder, os.X_OK) else _not_searched(PermissionError(errno.EACCES, "Permission denied"))


def _not_searched(error: Exception) -> str:
    where = f"{escape(error.filename)}: " if getattr(error, "filename", None) else ""
    return f"it cannot be searched ({where}{getattr(error, 'strerror', None) or error})"


def _searched_places() -> list[str]:
    """The places as an error lists them, those that cannot be searched with the reason."""
    places = [] if os.environ.get(VARIABLE, "").strip() else [f"${VARIABLE} (not set)"]
    for described, place in _places():
        obstacle = _obstacle(place)
        places.append(f"{described} ({obstacle})" if obstacle else described)
    return places


def _closest(name: str, registry: Mapping[str, Any]) -> str:
    matches = difflib.get_close_matches(name.lower(), registry, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""
