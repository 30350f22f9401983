"""A user's own images for re-identification: one folder per identity, or a CSV file per split."""

import os
from pathlib import Path

from dual_cross_attention.data.folders import (
    image_files,
    inner_folder_lines,
    subfolders,
    undoubled,
    unwrapped,
    what_is_in,
)
from dual_cross_attention.data.reid.cameras import CameraSource
from dual_cross_attention.data.reid.identities import ReIDData
from dual_cross_attention.data.reid.leftovers import describe_left_out, leftovers
from dual_cross_attention.data.reid.names import in_both, look_alikes, one_spelling
from dual_cross_attention.data.reid.records import Sighting, listed, parsed, positions
from dual_cross_attention.data.reid.tables import COLUMNS, read_table
from dual_cross_attention.errors import InputError

LAYOUT = (
    "train/, query/ and gallery/, each with IDENTITY/CAMERA_*.jpg, or train.csv, query.csv and gallery.csv, each with "
    f"the columns {','.join(COLUMNS)}"
)
SOURCE = "images of your own, sorted into one folder per identity"
NAMING = 'a camera before its first "_", as door_0001.jpg has (a CSV file can name cameras too)'
OTHER_SPLITS = ("val", "valid", "validation", "test", "probe")
"""Names of splits in other layouts; this layout does not read them."""


def load_folder(data_root: Path, train: bool = True) -> ReIDData:
    """Loads a dataset whose splits are CSV files (query.csv) or folders (query/IDENTITY/CAMERA_*.jpg).

    Names of identities and cameras are arbitrary; they are numbered in sorted order, and query and gallery share the
    numbers. Names that differ only in a trailing .0 or in their Unicode form are merged, see `one_spelling`.

    Args:
        data_root: the folder with the splits, or a folder that contains only that folder; paths in a CSV file are
            relative to the folder of that file, or absolute, and do not lead out of it. query/query, as some archives
            unpack, is accepted as query.
        train: read the training images too.

    Raises:
        InputError: a split is missing or without images, none of its images has a camera, or a CSV file cannot be
            used.
    """
    root = unwrapped(data_root, _has_queries) or data_root
    warnings = inner_folder_lines("folder", root, data_root)
    notes: list[str] = []
    names = ("train", "query", "gallery") if train else ("query", "gallery")
    splits = {name: _read(root, name, warnings, notes) for name in names}
    other = [path for name in OTHER_SPLITS for path in (root / name, root / f"{name}.csv")]
    warnings += [
        f"folder: {path} is not read: splits are train, query and gallery" for path in other if os.path.lexists(path)
    ]
    splits = one_spelling("folder", splits, warnings)
    warnings += look_alikes("folder", splits)
    test = [*splits["query"], *splits["gallery"]]
    identities, cameras = positions(s.identity for s in test), positions(s.camera for s in test)
    numbers = identities.__getitem__, cameras.__getitem__
    query, gallery = listed(splits["query"], *numbers), listed(splits["gallery"], *numbers)
    source = _camera_source(root, list(cameras), list(identities))
    if not train:
        return ReIDData("folder", [], None, query, gallery, warnings, notes, source)
    warnings += in_both("folder", (s.identity for s in splits["train"]), identities)
    labels = positions(s.identity for s in splits["train"])
    train_cameras = positions(s.camera for s in splits["train"])
    train_list = listed(splits["train"], labels.__getitem__, train_cameras.__getitem__)
    return ReIDData("folder", list(labels), train_list, query, gallery, warnings, notes, source)


def _has_queries(root: Path) -> bool:
    return (root / "query").is_dir() or os.path.lexists(root / "query.csv")


def _camera_source(data_root: Path, cameras: list[str], identities: list[str]) -> CameraSource:
    in_tables = [os.path.lexists(data_root / f"{split}.csv") for split in ("query", "gallery")]
    column, prefix = "the column camera", 'the part of a file name before its first "_"'
    taken_from = column if all(in_tables) else f"{prefix}, or {column}" if any(in_tables) else prefix
    remedy = (
        f"{'' if all(in_tables) else 'name the files CAMERA_*.jpg, or '}give cameras in the column camera of query.csv "
        "and gallery.csv: one name for query.csv and another for gallery.csv if nothing should be left out"
    )
    return CameraSource(taken_from, remedy, cameras, identities)


def _read(data_root: Path, split: str, warnings: list[str], notes: list[str]) -> list[Sighting]:
    folder, table = data_root / split, data_root / f"{split}.csv"
    where = f"folder: {folder}"
    if os.path.lexists(table):  # a dangling link is an error, not a missing table
        sightings = read_table(table, notes)
        if folder.is_dir():
            warnings += leftovers(where, folder, (seen.image for seen in sightings), 1, table.name)
        return sightings
    if not folder.is_dir():
        raise InputError(f"folder: expected {LAYOUT} in {data_root}, but {what_is_in(data_root)}")
    inner = undoubled(folder)
    if subfolders(inner):  # otherwise, the only identity would be called like the split
        warnings += inner_folder_lines("folder", inner, folder)
        folder, where = inner, f"folder: {inner}"
    files = [file for identity in subfolders(folder) for file in image_files(identity)]
    if not files:
        raise InputError(
            f"folder: expected IDENTITY/CAMERA_*.jpg in {folder}, but {what_is_in(folder)}"
            f"{describe_left_out(folder, 1)}"
        )

    def sighting(file: Path) -> Sighting | None:
        camera, found, _ = file.name.partition("_")
        return Sighting(file, file.parent.name, camera) if camera and found else None

    sightings = parsed(files, sighting, where, NAMING, warnings)
    warnings += leftovers(where, folder, files, 1)
    return sightings
