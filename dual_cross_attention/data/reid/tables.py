"""CSV files that list a split's images: path, identity and camera of each."""

from pathlib import Path

from dual_cross_attention.data.names import composed
from dual_cross_attention.data.reid.paths import listed_path
from dual_cross_attention.data.reid.records import Sighting, absent
from dual_cross_attention.data.tables import read_rows
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

COLUMNS = ("path", "identity", "camera")


def read_table(path: Path, notes: list[str]) -> list[Sighting]:
    """Reads the images that a CSV file lists, in its order; columns and separator as in `read_rows`.

    Args:
        path: the file; paths in it are relative to its folder, with slashes or backslashes, or absolute.
        notes: a line is added on a separator other than the comma, on backslashes, and on other forms of Unicode.

    Raises:
        InputError: the file cannot be read, lacks a column or a field, or lists no image, one twice, or one that does
            not exist.
    """
    lines, sightings, backslashes, other_forms = [], [], 0, 0
    for line, fields in read_rows(path, COLUMNS, "folder", notes):
        image = listed_path(path.parent, fields["path"], f"folder: {path}, line {line}")
        backslashes += fields["path"].count("\\") > f"{image}".count("\\")
        other_forms += _in_another_form(image, fields["path"])
        lines.append(line)
        sightings.append(Sighting(image, fields["identity"], fields["camera"]))
    if backslashes:
        notes.append(f"folder: {escape(path.name)}: the backslashes of {backslashes:,} paths are read as slashes")
    _check_exist(path, lines, sightings)
    if other_forms:
        notes.append(
            f"folder: {escape(path.name)}: {other_forms:,} paths are found under another Unicode form of their names"
        )
    first_at: dict[Path, int] = {}
    for line, (image, _, _) in zip(lines, sightings, strict=True):
        if first_at.setdefault(image, line) != line:
            raise InputError(
                f"folder: {path}, line {line}: {escape(image)} is listed in line {first_at[image]} already"
            )
    return sightings


def _in_another_form(image: Path, listed: str) -> bool:
    """Whether a name in the path on disk is composed in Unicode where the listed one is decomposed, or vice versa."""
    if listed.isascii():
        return False
    names = zip(reversed(image.parts), reversed(Path(listed.replace("\\", "/")).parts), strict=False)
    return any(name != other and composed(name) == composed(other) for name, other in names)


def _check_exist(path: Path, lines: list[int], sightings: list[Sighting]) -> None:
    """Raises InputError for the first image that does not exist."""
    gone = {*absent([seen.image for seen in sightings])}
    for line, seen in zip(lines, sightings, strict=True):
        if seen.image in gone:
            raise InputError(f"folder: {path}, line {line}: {escape(seen.image)} does not exist")
