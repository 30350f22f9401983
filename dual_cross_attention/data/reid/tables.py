"""CSV files that list a split's images: path and identity of each, and camera and bounding box where they are known.

The names of the columns are those of WildlifeDatasets.
"""

from pathlib import Path
from typing import NamedTuple

from dual_cross_attention.data.boxes import BoxMode, parse_box
from dual_cross_attention.data.crops import CroppedFile, file_of
from dual_cross_attention.data.listed_paths import absent, listed_path
from dual_cross_attention.data.names import composed
from dual_cross_attention.data.reid.camera_names import NO_CAMERA, CameraMode
from dual_cross_attention.data.reid.records import Sighting
from dual_cross_attention.data.tables import TableRow, read_rows
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

COLUMNS = ("path", "identity", "camera")
UNKNOWN = "unknown"
"""What WildlifeDatasets calls the identity of an image that has none."""


class Table(NamedTuple):
    """What a CSV file lists.

    Args:
        sightings: the images, in its order.
        has_cameras: whether it names the camera of each.
    """

    sightings: list[Sighting]
    has_cameras: bool


def read_table(
    path: Path, notes: list[str], warnings: list[str], cameras: CameraMode = "name", bbox: BoxMode = "crop"
) -> Table:
    """Reads the images that a CSV file lists, in its order; columns and separator as in `read_rows`.

    Args:
        path: the file; paths in it are relative to its folder, with slashes or backslashes, or absolute.
        notes: a line is added on a separator other than the comma, on backslashes, on other forms of Unicode and on
            bounding boxes.
        warnings: a line is added on images of the identity "unknown".
        cameras: "name": the column camera must be filled; "auto": it is filled in all rows, or in none or missing;
            "none": it is not read.
        bbox: "crop": images are cropped by the column bbox, if it exists.

    Raises:
        InputError: the file cannot be read, lacks a column or a field, or lists no image, one twice, or one that does
            not exist.
    """
    needed = COLUMNS if cameras == "name" else COLUMNS[:2]
    rows = read_rows(path, needed, "folder", notes, ("camera", "bbox") if cameras == "auto" else ("bbox",))
    has_cameras = cameras == "name" or (cameras == "auto" and _has_cameras(path, rows))
    lines, sightings, backslashes, other_forms, cropped = [], [], 0, 0, 0
    for line, fields in rows:
        where = f"folder: {path}, line {line}"
        image = listed_path(path.parent, fields["path"], where)
        backslashes += fields["path"].count("\\") > f"{image}".count("\\")
        other_forms += _in_another_form(image, fields["path"])
        box = parse_box(fields["bbox"], where) if bbox == "crop" else None
        cropped += box is not None
        lines.append(line)
        camera = fields["camera"] if has_cameras else NO_CAMERA
        sightings.append(Sighting(image if box is None else CroppedFile(image, box), fields["identity"], camera))
    name = escape(path.name)
    if backslashes:
        notes.append(f"folder: {name}: the backslashes of {backslashes:,} paths are read as slashes")
    _check_exist(path, lines, [file_of(seen.image) for seen in sightings])
    if other_forms:
        notes.append(f"folder: {name}: {other_forms:,} paths are found under another Unicode form of their names")
    if cropped:
        rest = len(rows) - cropped
        notes.append(
            f"folder: {name}: {cropped:,} images are cropped by the column bbox"
            f"{f'; {rest:,} without a box are read whole' if rest else ''}"
        )
    if bbox == "ignore" and any(fields["bbox"] for _, fields in rows):
        notes.append(f"folder: {name}: the column bbox is ignored: images are read whole (--bbox ignore)")
    if unknown := sum(seen.identity.casefold() == UNKNOWN for seen in sightings):
        warnings.append(
            f"folder: {name}: {unknown:,} images have the identity '{UNKNOWN}', which is read as one identity: remove "
            "these rows if they show several"
        )
    first_at: dict[Path | CroppedFile, int] = {}
    for line, (image, _, _) in zip(lines, sightings, strict=True):
        if first_at.setdefault(image, line) != line:
            raise InputError(
                f"folder: {path}, line {line}: {escape(image)} is listed in line {first_at[image]} already"
            )
    return Table(sightings, has_cameras)


def _has_cameras(path: Path, rows: list[TableRow]) -> bool:
    """Whether the column camera is filled; raises InputError if it is in some rows only."""
    empty = [line for line, fields in rows if not fields["camera"]]
    if empty and len(empty) < len(rows):
        raise InputError(
            f"folder: {path}, line {empty[0]}: the field camera is empty, as in {len(empty):,} of {len(rows):,} rows: "
            "fill it in all rows, or give --cameras none"
        )
    return not empty


def _in_another_form(image: Path, listed: str) -> bool:
    """Whether a name in the path on disk is composed in Unicode where the listed one is decomposed, or vice versa."""
    if listed.isascii():
        return False
    names = zip(reversed(image.parts), reversed(Path(listed.replace("\\", "/")).parts), strict=False)
    return any(name != other and composed(name) == composed(other) for name, other in names)


def _check_exist(path: Path, lines: list[int], files: list[Path]) -> None:
    """Raises InputError for the first image that does not exist."""
    gone = {*absent(files)}
    for line, file in zip(lines, files, strict=True):
        if file in gone:
            raise InputError(f"folder: {path}, line {line}: {escape(file)} does not exist")
