"""CSV files that list a split's images: path, identity and camera of each."""

import csv
import io
from pathlib import Path

from dual_cross_attention.data.names import composed
from dual_cross_attention.data.reid.paths import listed_path
from dual_cross_attention.data.reid.records import Sighting, absent
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import read_text

COLUMNS = ("path", "identity", "camera")
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


def read_table(path: Path, notes: list[str]) -> list[Sighting]:
    """The images that a CSV file lists, in its order.

    Columns are found by their names, in any order and in capitals or not; what separates them, by the header.

    Args:
        path: the file; paths in it are relative to its folder, with slashes or backslashes, or absolute.
        notes: a line is added on a separator other than the comma, on backslashes, and on other forms of Unicode.

    Raises:
        InputError: the file cannot be read, lacks a column or a field, or lists no image, one twice, or one that does
            not exist.
    """
    text = read_text(path, "folder")
    separator = _separator(text.split("\n", 1)[0])
    if separator != ",":
        notes.append(f"folder: {escape(path.name)} is read with {SEPARATORS[separator]} between its columns")
    rows = _read_rows(path, text, separator)
    if not rows:
        raise InputError(f"folder: expected images in {path}, but it lists none")
    lines, sightings, backslashes, other_forms = [], [], 0, 0
    for line, fields in rows:
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


def _separator(header: str) -> str:
    """What separates the columns of a header, by how many of the expected names it gives; the comma where none does."""

    def columns(separator: str) -> int:
        try:
            names = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:
            return 0
        return len({name.strip().casefold() for name in names} & set(COLUMNS))

    return max(SEPARATORS, key=columns)  # of equals, the first


def _read_rows(path: Path, text: str, separator: str) -> list[tuple[int, dict[str, str]]]:
    """Line numbers, and the fields of `COLUMNS`."""
    found = []
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        header = [name.strip().casefold() for name in rows.fieldnames or []]
        rows.fieldnames = header
        if wrong := [name for name in COLUMNS if header.count(name) != 1]:
            raise InputError(
                f"folder: {path}, line 1: expected the columns {','.join(COLUMNS)}, but there "
                f"{'are several' if wrong[0] in header else 'is no'} {wrong[0]}"
            )
        for row in rows:
            where = f"folder: {path}, line {rows.line_num}"
            if None in row:  # DictReader's key of what is beyond the header
                raise InputError(
                    f"{where}: expected {len(header)} fields, got {len(header) + len(row[None])}: a field with "
                    f"{SEPARATORS[separator]} needs quotes"
                )
            fields = {name: (row[name] or "").strip() for name in COLUMNS}
            if empty := [name for name, field in fields.items() if not field]:
                raise InputError(f"{where}: the field {empty[0]} is empty")
            found.append((rows.line_num, fields))
    except (OSError, csv.Error) as error:
        raise InputError(
            f"folder: {path} cannot be read as CSV: {getattr(error, 'strerror', None) or error}"
        ) from error
    return found


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
