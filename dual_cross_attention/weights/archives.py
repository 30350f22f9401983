"""Untrusted zip archives of weights (.pth, .npz): their unpacked sizes are checked before they are read."""

import zipfile
from pathlib import Path

import numpy as np

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

MAX_RATIO = 20
"""Largest ratio of unpacked to packed size. Trained weights shrink by a tenth, rarely to a third; a bomb to a
thousandth."""
MAX_SMALL = 10 * 2**20
"""Unpacked size that is always allowed, in bytes."""


def check_archive(path: Path) -> None:
    """Raises InputError if the file is a zip archive whose unpacked size exceeds the limits; ignores other files."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    packed = path.stat().st_size
    if unpacked > max(MAX_RATIO * packed, MAX_SMALL):
        raise InputError(
            f"cannot read weights '{path}': expected an archive that unpacks to at most {MAX_RATIO} times its "
            f"{packed:,} bytes, got one of {unpacked:,}: that is a zip bomb"
        )


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads the array shapes of an .npz file from the headers only: nothing is unpacked or unpickled.

    Raises:
        InputError: an array holds Python objects, or claims more numbers than it has.
    """
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in read:
                    raise InputError(f"cannot read weights '{path}': {escape(name)} has the .npy version {version}")
                shape, _, dtype = read[version](file)
                claimed = file.tell() + dtype.itemsize * int(np.prod(shape, dtype=object))
            if dtype.hasobject:
                raise InputError(
                    f"cannot read weights '{path}': expected arrays of numbers, but {escape(name)} is of Python "
                    "objects, which are pickled and could run code: nothing of it was run"
                )
            if claimed != entry.file_size:
                raise InputError(
                    f"cannot read weights '{path}': {escape(name)} claims the shape {shape}, which takes "
                    f"{claimed:,} bytes, but has {entry.file_size:,}"
                )
            shapes[name] = shape
    return shapes
