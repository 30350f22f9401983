"""`dcal download`: a dataset from its publisher, or where to get it."""

import shlex

from rich.console import Console

from dual_cross_attention.data.download import Progress
from dual_cross_attention.data.registry import DatasetEntry, download_data
from dual_cross_attention.errors import InputError
from dual_cross_attention.progress import ProgressBar
from dual_cross_attention.tasks.data_roots import DATASETS
from dual_cross_attention.text import escape


def download_dataset(name: str, data_root: str | None, console: Console) -> list[str]:
    """Downloads a dataset of any task, unless it is there.

    Args:
        name: of the dataset.
        data_root: the folder that will hold its folder; None: see `download_data`.
        console: shows the progress.

    Returns:
        Lines: where it is, and what to type next.

    Raises:
        InputError: no such dataset, one that cannot be downloaded from here, or a failed download.
    """
    of_task = {task: registry for task, registry in DATASETS.items() if name in registry}
    if not of_task:
        raise InputError(f"unknown dataset '{escape(name):.60}'; there are: {', '.join(_entries())}")
    task, registry = next(iter(of_task.items()))
    entry = registry[name]
    if entry.archive is None:
        raise InputError(f"{name} cannot be downloaded from here: {entry.no_download}{_source(entry)}")
    with ProgressBar("download, MB", entry.archive.size // 10**6, console) as advance:
        folder = download_data(entry, name, registry, data_root, _in_megabytes(advance))
    quoted = shlex.quote(f"{folder}")
    return [
        f"{name}: {escape(folder)}",
        "next:",
        f"  dcal check-data --task {task} --dataset {name} --data_root {quoted}",
        f"  dcal train --task {task} --dataset {name} --data_root {quoted}",
    ]


def dataset_sources() -> list[str]:
    """A line for each published dataset: whether it can be downloaded, or where to get it."""
    lines = []
    for name, entry in _entries().items():
        if entry.archive is not None:
            lines.append(f"{name:11} {entry.description}: dcal download {name} ({entry.archive.size / 1e9:.1f} GB)")
        elif entry.find is not None:
            lines.append(f"{name:11} {entry.description}: {entry.no_download}{_source(entry)}")
    return lines


def _entries() -> dict[str, DatasetEntry]:
    """Of all tasks; of names that several tasks have, the first task's."""
    entries: dict[str, DatasetEntry] = {}
    for registry in DATASETS.values():
        entries = {**registry, **entries}
    return {name: entries[name] for registry in DATASETS.values() for name in registry}


def _source(entry: DatasetEntry) -> str:
    return f"; get it from {entry.source}" if "http" in entry.source else ""


def _in_megabytes(advance) -> Progress:
    """Advances a bar by the megabytes that have been received since the last call."""
    shown = 0

    def progress(done: int, total: int | None) -> None:
        nonlocal shown
        advance(advance=done // 10**6 - shown)
        shown = done // 10**6

    return progress
