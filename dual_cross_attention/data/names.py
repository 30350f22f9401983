"""Unicode names, composed ("é", NFC) or decomposed ("e" and an accent, NFD, as macOS writes them)."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path


def composed(name: str) -> str:
    """The name in NFC: two names are the same if their composed forms are equal."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def same_names(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists hold the same names in the same order, composed or decomposed."""
    return len(names) == len(others) and all(map(_same, names, others))


def composed_order(names: Iterable[str]) -> list[str]:
    """The distinct names, composed, in the sorted order of the spellings given.

    Not in the order of the composed forms: labels of runs made before names were composed depend on it.
    """
    return list(dict.fromkeys(composed(name) for name in sorted(set(names))))


def as_on_disk(folder: Path, relative: Path) -> Path:
    """`folder / relative`; where that does not exist, the path there whose names are the same in Unicode, if any."""
    path = folder / relative
    if f"{relative}".isascii() or os.path.lexists(path):
        return path
    found = folder
    for part in relative.parts:
        found = found / _names_in(found).get(composed(part), part)
    return found


def _same(name: str, other: str) -> bool:
    return composed(name) == composed(other)


def _names_in(folder: Path) -> dict[str, str]:
    try:
        return _listed(folder, os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=256)
def _listed(folder: Path, changed: int) -> dict[str, str]:
    """{composed name: name on disk} of a folder. `changed` is part of the key: a changed folder is read again.

    Of two spellings of one name, the first in sorted order.
    """
    names: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        names.setdefault(composed(name), name)
    return names
