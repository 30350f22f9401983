"""Byte-identical files."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from dual_cross_attention.untrusted_files import open_regular

FIRST_BYTES = 1 << 12
"""Bytes that are compared first for files of equal size, which large datasets have many of."""
AT_ONCE = 1 << 20


def identical_files(paths: Sequence[Path]) -> list[list[int]]:
    """Groups of byte-identical files, as positions in `paths`.

    Sizes are compared first, then hashes of the first bytes, then hashes of all bytes: a file whose size is unique is
    not opened. Files that cannot be read are in no group.

    Returns:
        Groups of two files or more, each in ascending order.
    """
    groups: list[list[int]] = [[*range(len(paths))]]
    for key in (_size, lambda path: digest_file(path, FIRST_BYTES), digest_file):
        groups = [each for group in groups for each in _grouped(group, paths, key)]
    return groups


def _grouped(group: Iterable[int], paths: Sequence[Path], key: Callable[[Path], Hashable]) -> list[list[int]]:
    """The positions of a group by the key of their files, without the keys of a single file."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for position in group:
        try:
            found[key(paths[position])].append(position)
        except (OSError, ValueError):  # reported with its reason when the images are read
            continue
    return [positions for positions in found.values() if len(positions) > 1]


def _size(path: Path) -> int:
    return os.stat(path).st_size


def digest_file(path: Path, most: int | None = None) -> bytes:
    """A hash over the bytes of a file, or over at most so many of the first."""
    digest = hashlib.blake2b(digest_size=16)
    with open_regular(path) as file:
        if most is not None:
            digest.update(file.read(most))
        else:
            while block := file.read(AT_ONCE):
                digest.update(block)
    return digest.digest()
