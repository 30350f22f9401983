"""Opens tables by the library `datasets`, which is imported here only."""

import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dual_cross_attention.configs.hub_names import HUB
from dual_cross_attention.data.columns import SPLITS
from dual_cross_attention.data.folders import is_visible, what_is_in
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, few

SAVED = ("dataset_dict.json", "state.json")
"""Files of a folder that `datasets.save_to_disk` wrote."""
KINDS = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Opened:
    """Tables by split.

    Args:
        name: what messages call the dataset, escaped.
        tables: `datasets.Dataset` by the name of the split.
        folders: the files that rows name are inside of one of them.
        are_files: whether the images are files, not bytes.
        notes: how it was read.
    """

    name: str
    tables: Mapping[str, Any]
    folders: tuple[Path, ...] = ()
    are_files: bool = False
    notes: list[str] = field(default_factory=list)


def open_tables(data_root: Path | str) -> Opened:
    """Opens a dataset of the hub, a folder or a file, memory-mapped; nothing of it is executed.

    - hf:ORG/NAME or hf:ORG/NAME:SUBSET: a dataset of the Hugging Face Hub.
    - a folder that `datasets.save_to_disk` wrote.
    - a folder with Parquet or Arrow files, at any depth. The split of a file is in its name, else in that of
      the folder next to it (train-00000-of-00002.parquet, test/0.parquet); files without are of train if all are.
    - a Parquet or Arrow file, of the split train.
    - another folder: train/CLASS/*.jpg and validation/ or test/, or CLASS/*.jpg (datasets' "imagefolder").

    `datasets` writes Parquet once more as Arrow into its cache, which `HF_HOME` or `HF_DATASETS_CACHE` moves; downloads
    of the hub are in `HF_HUB_CACHE`, if it is set.

    Raises:
        InputError: `datasets` is not installed, there is nothing, or it cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "hf: reading Parquet, Arrow and datasets of the Hugging Face Hub needs the library datasets: "
            "pip install 'dual-cross-attention[data]'"
        ) from error
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    name = escape(data_root)
    try:
        if isinstance(data_root, str):
            path, _, subset = data_root.removeprefix(HUB).partition(":")
            tables = _by_split(datasets.load_dataset(path, subset or None))
            return Opened(name, tables, _hub_caches(datasets))
        return _open_local(data_root, name, datasets)
    except InputError:
        raise
    except Exception as error:  # its builders, pyarrow, fsspec and the hub's client raise many types
        cause = error
        while cause.__cause__ is not None and type(error).__module__.startswith("datasets"):
            cause = cause.__cause__
        reason = escape(" ".join(f"{type(cause).__name__}: {cause}".split()))
        raise InputError(f"hf: {name} cannot be read: {reason:.500}") from error


def _hub_caches(datasets: Any) -> tuple[Path, ...]:
    """Where image files of a repository are, whose paths rows have: HF_HOME, or what moves a part of it elsewhere."""
    from huggingface_hub import constants

    moved = constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH
    return tuple(Path(each) for each in (datasets.config.HF_CACHE_HOME, *moved))


def _by_split(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {"train": found}


def _open_local(root: Path, name: str, datasets: Any) -> Opened:
    if root.is_file() and root.suffix.lower() in KINDS:
        files = {"train": [f"{root}"]}
        return Opened(name, datasets.load_dataset(KINDS[root.suffix.lower()], data_files=files), (root.parent,))
    if not root.is_dir():
        raise InputError(f"hf: expected a folder, a .parquet or an .arrow file at {name}, but {what_is_in(root)}")
    if any((root / each).is_file() for each in SAVED):
        return Opened(name, _by_split(datasets.load_from_disk(f"{root}")), (root,))
    for suffix, kind in KINDS.items():
        paths = sorted(path for path in root.rglob(f"*{suffix}") if all(map(is_visible, path.relative_to(root).parts)))
        if paths:
            # One by one: together, `datasets` reads the class numbers of all splits by the names of the first.
            splits = _splits(root, paths).items()
            tables = {each: datasets.load_dataset(kind, data_files={each: files})[each] for each, files in splits}
            return Opened(name, tables, (root,))
    if not any(path.is_dir() for path in root.iterdir()):
        raise InputError(
            f"hf: expected Parquet or Arrow files, or folders of images, in {name}, but {what_is_in(root)}"
        )
    return Opened(name, datasets.load_dataset("imagefolder", data_dir=f"{root}"), (root,), are_files=True)


def _splits(root: Path, paths: list[Path]) -> dict[str, list[str]]:
    """Files by split, see `open_tables`; raises InputError for one without, where others have one, or with several."""
    found: dict[str | None, list[str]] = defaultdict(list)
    for path in paths:
        found[_split(path.relative_to(root))].append(f"{path}")
    if None in found and len(found) > 1:
        raise InputError(
            f"hf: expected train, validation or test in the name of each file of {escape(root)}, got "
            f"{escape(Path(found[None][0]).relative_to(root))}"
        )
    return {split or "train": files for split, files in found.items()}


def _split(path: Path) -> str | None:
    """The split in the name of a file, else of the folder next to it."""
    for part in reversed(path.with_suffix("").parts):
        splits = {SPLITS[word] for word in re.split(r"[^a-z]+", part.casefold()) if word in SPLITS}
        if len(splits) > 1:
            raise InputError(f"hf: expected one split in the name of {escape(path)}, got {few(sorted(splits))}")
        if splits:
            return splits.pop()
    return None
