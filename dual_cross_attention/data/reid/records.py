"""Image records with identity and camera names, and the conversion of names to numbers."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from dual_cross_attention.data.crops import CroppedFile
from dual_cross_attention.data.names import composed, composed_order
from dual_cross_attention.data.reid.identities import IdentityList
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

MAX_DIGITS = 18  # always fits into an int64


class Sighting(NamedTuple):
    """An image with its identity and camera as the dataset names them; "" where cameras are not read."""

    image: Path | CroppedFile
    identity: str
    camera: str


def parsed(
    files: list[Path], parse: Callable[[Path], Sighting | None], where: str, naming: str, warnings: list[str]
) -> list[Sighting]:
    """Parses identity and camera of each file; files without them are left out and counted in a warning.

    Args:
        files: at least one.
        parse: returns a file's identity and camera; None if its name has none.
        where: the dataset and the file or folder that lists the files, for messages.
        naming: what a file name should contain, for messages.
        warnings: a warning is appended.

    Raises:
        InputError: no file can be parsed.
    """
    sightings = [parse(file) for file in files]
    odd = [file for file, sighting in zip(files, sightings, strict=True) if sighting is None]
    if len(odd) == len(files):
        raise InputError(
            f"{where}: none of the {len(files):,} file names has {naming}; the first is {escape(odd[0].name)}"
        )
    if odd:
        warnings.append(
            f"{where}: {len(odd):,} of {len(files):,} images are left out, such as {escape(odd[0].name)}: "
            f"their names lack {naming}"
        )
    return [sighting for sighting in sightings if sighting is not None]


class _Positions(dict[str, int]):
    """Positions by composed name; `positions[name]` accepts decomposed names, too."""

    def __missing__(self, name: str) -> int:
        if (same := composed(name)) == name:
            raise KeyError(name)
        return self[same]


def positions(names: Iterable[str]) -> dict[str, int]:
    """Maps each composed name (see `data.names`) to its position in sorted order."""
    return _Positions({name: place for place, name in enumerate(composed_order(names))})


def listed(
    sightings: list[Sighting], identity: Callable[[str], int] = int, camera: Callable[[str], int] | None = int
) -> IdentityList:
    """Returns the images with numeric identities and cameras, computed from the names by two functions.

    Args:
        sightings: the images.
        identity, camera: from a name to its number; no camera: there are none.

    Raises:
        InputError: a name is a number of more than `MAX_DIGITS` digits.
    """
    for sighting in sightings:
        for what, name in (("identity", sighting.identity), ("camera", sighting.camera)):
            if len(name) > MAX_DIGITS and int in (identity, camera):
                raise InputError(
                    f"{escape(sighting.image)}: expected a number of at most {MAX_DIGITS} digits as {what}, got "
                    f"{len(name)} digits"
                )
    cameras = None if camera is None else [camera(s.camera) for s in sightings]
    return IdentityList([s.image for s in sightings], [identity(s.identity) for s in sightings], cameras)
