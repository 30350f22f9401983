"""Atomic writes: after a kill or a power failure, a file has its old or its new content, never a part of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path, NAME.tmp; when the block ends, flushes it to disk and renames it to `path`.

    If the block raises, or the disk is full, the file is unchanged.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # frees the space on a full disk
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Syncs a file, or the entries of a folder, to disk (fsync), so that they survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Creates a folder and its missing parents, and syncs their names to disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True)
    for folder in missing:
        flush(folder.parent)
