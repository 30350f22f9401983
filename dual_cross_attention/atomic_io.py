"""Writing so that a kill or a power cut leaves the old or the new, never a half."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a path beside a file's, NAME.tmp; what was written there when the block ends is flushed and renamed.

    If the block raises, or there is no room, the file stays as it was.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, its part is what others need
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk itself: a power cut then cannot undo them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """A new folder, and those above it that are missing, whose names a power cut cannot undo."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True)
    for folder in missing:
        flush(folder.parent)
