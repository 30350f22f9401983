"""A user's own pictures for re-identification: one folder per identity, or a CSV file per split."""

import csv
import io
import os
from pathlib import Path

from dual_cross_attention.data.files import inside, read_text
from dual_cross_attention.data.folders import picture_files, what_is_in
from dual_cross_attention.data.reid.identities import ReIDData
from dual_cross_attention.data.reid.sightings import Sighting, absent, listed, parsed, positions
from dual_cross_attention.errors import InputError
from dual_cross_attention.messages import printable

COLUMNS = ("path", "identity", "camera")
LAYOUT = (
    "train/, query/ and gallery/, each with IDENTITY/CAMERA_*.jpg, or train.csv, query.csv and gallery.csv, each with "
    f"the columns {','.join(COLUMNS)}"
)
SOURCE = "pictures of your own, sorted into one folder per identity"
NAMING = 'a camera before its first "_", as door_0001.jpg has (a CSV file can name cameras too)'


def load_folder(data_root: Path, train: bool = True) -> ReIDData:
    """Each split is a CSV file (query.csv), or else a folder (query/IDENTITY/CAMERA_*.jpg).

    Identities and cameras have any names, and become numbers by sorted name, which query and gallery share.

    Args:
        data_root: the folder that holds the splits; paths in a CSV file are relative to it, or absolute, and do not
            lead out of it.
        train: read the training pictures too.

    Raises:
        InputError: a split is missing or without pictures, none of its pictures has a camera, or a CSV file cannot be
            used.
    """
    warnings: list[str] = []
    names = ("train", "query", "gallery") if train else ("query", "gallery")
    splits = {name: _read(data_root, name, warnings) for name in names}
    test = [*splits["query"], *splits["gallery"]]
    numbers = [positions(s.identity for s in test).__getitem__, positions(s.camera for s in test).__getitem__]
    query, gallery = listed(splits["query"], *numbers), listed(splits["gallery"], *numbers)
    if not train:
        return ReIDData("folder", [], None, query, gallery, warnings)
    labels = positions(s.identity for s in splits["train"])
    cameras = positions(s.camera for s in splits["train"])
    train_list = listed(splits["train"], labels.__getitem__, cameras.__getitem__)
    return ReIDData("folder", list(labels), train_list, query, gallery, warnings)


def _read(data_root: Path, split: str, warnings: list[str]) -> list[Sighting]:
    folder, table = data_root / split, data_root / f"{split}.csv"
    if os.path.lexists(table):  # a link to nothing is a mistake, not a missing table
        return _read_csv(table)
    if not folder.is_dir():
        raise InputError(f"folder: expected {LAYOUT} in {data_root}, but {what_is_in(data_root)}")
    identities = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [file for identity in identities for file in picture_files(identity)]
    if not files:
        raise InputError(f"folder: expected IDENTITY/CAMERA_*.jpg in {folder}, but {what_is_in(folder)}")

    def sighting(file: Path) -> Sighting | None:
        camera, found, _ = file.name.partition("_")
        return Sighting(file, file.parent.name, camera) if camera and found else None

    return parsed(files, sighting, f"folder: {folder}", NAMING, warnings)


def _read_csv(path: Path) -> list[Sighting]:
    sightings: list[Sighting] = []
    lines: list[int] = []
    try:
        rows = csv.DictReader(io.StringIO(read_text(path, "folder"), newline=""), strict=True)
        header = rows.fieldnames or []
        if wrong := [name for name in COLUMNS if header.count(name) != 1]:
            raise InputError(
                f"folder: {path}, line 1: expected the columns {','.join(COLUMNS)}, but there "
                f"{'are several' if wrong[0] in header else 'is no'} {wrong[0]}"
            )
        for row in rows:
            where = f"folder: {path}, line {rows.line_num}"
            if None in row:  # DictReader's key of what is beyond the header
                raise InputError(
                    f"{where}: expected {len(header)} fields, got {len(header) + len(row[None])}: a field with a comma "
                    "needs quotes"
                )
            fields = {name: (row[name] or "").strip() for name in COLUMNS}
            if empty := [name for name, field in fields.items() if not field]:
                raise InputError(f"{where}: the field {empty[0]} is empty")
            picture = inside(path.parent, fields["path"], where)
            sightings.append(Sighting(picture, fields["identity"], fields["camera"]))
            lines.append(rows.line_num)
    except (OSError, csv.Error) as error:
        raise InputError(
            f"folder: {path} cannot be read as CSV: {getattr(error, 'strerror', None) or error}"
        ) from error
    pictures = [sighting.picture for sighting in sightings]
    if not pictures:
        raise InputError(f"folder: expected pictures in {path}, but it lists none")
    first_at: dict[Path, int] = {}
    for line, picture in zip(lines, pictures, strict=True):
        if first_at.setdefault(picture, line) != line:
            raise InputError(
                f"folder: {path}, line {line}: {printable(picture)} is listed in line {first_at[picture]} already"
            )
    if gone := absent(pictures):
        raise InputError(f"folder: {path}, line {lines[pictures.index(gone[0])]}: {printable(gone[0])} does not exist")
    return sightings
