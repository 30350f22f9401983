"""A user's own images for re-identification: one folder per identity, or a CSV file per split."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dual_cross_attention.data.boxes import BoxMode
from dual_cross_attention.data.crops import file_of
from dual_cross_attention.data.folders import (
    image_files,
    inner_folder_lines,
    subfolders,
    undoubled,
    unwrapped,
    what_is_in,
)
from dual_cross_attention.data.reid.camera_names import (
    BY_PREFIX,
    NO_CAMERA,
    CameraMode,
    CameraRule,
    NamedImage,
    choose_rule,
)
from dual_cross_attention.data.reid.cameras import CameraSource
from dual_cross_attention.data.reid.identities import ReIDData
from dual_cross_attention.data.reid.leftovers import describe_left_out, leftovers
from dual_cross_attention.data.reid.names import in_both, look_alikes, one_spelling
from dual_cross_attention.data.reid.own_files import describe_copies
from dual_cross_attention.data.reid.records import Sighting, listed, parsed, positions
from dual_cross_attention.data.reid.tables import COLUMNS, read_table
from dual_cross_attention.errors import InputError

LAYOUT = (
    "train/, query/ and gallery/, each with IDENTITY/CAMERA_*.jpg, or train.csv, query.csv and gallery.csv, each with "
    f"the columns {','.join(COLUMNS)}; without cameras, IDENTITY/*.jpg, or the columns {','.join(COLUMNS[:2])}; test/ "
    "or test.csv in place of query and gallery"
)
SOURCE = "images of your own, sorted into one folder per identity"
NAMING = 'a camera before its first "_", as door_0001.jpg has (a CSV file can name cameras too; --cameras none)'
SPLITS = ("query", "gallery")
ONE_SPLIT = ("test",)
"""In place of `SPLITS`: each image is searched for among all others."""
OTHER_SPLITS = ("val", "valid", "validation", "test", "probe")
"""Names of splits in other layouts; this layout does not read them."""
COLUMN = "the column camera"


class Listing(NamedTuple):
    """The images of a split, before cameras are read from file names.

    Args:
        where: the dataset and the folder or the file, for messages.
        sightings: with the cameras of a table.
        is_table: whether they are listed in a CSV file.
        has_cameras: whether that names cameras.
    """

    where: str
    sightings: list[Sighting]
    is_table: bool
    has_cameras: bool


class Decision(NamedTuple):
    """Which cameras the images have.

    Args:
        rule: for names of files; None: there are no cameras.
        taken_from: what cameras are read from, for messages; of no cameras, why.
        remark: why these are cameras, where that was decided.
    """

    rule: CameraRule | None
    taken_from: str
    remark: str = ""


def load_folder(data_root: Path, train: bool = True, cameras: CameraMode = "name", bbox: BoxMode = "crop") -> ReIDData:
    """Loads a dataset whose splits are CSV files (query.csv) or folders (query/IDENTITY/CAMERA_*.jpg).

    Names of identities and cameras are arbitrary; they are numbered in sorted order, and query and gallery share the
    numbers. Names that differ only in a trailing .0 or in their Unicode form are merged, see `one_spelling`. Without
    query and gallery, the images of test/ or test.csv are evaluated leave-one-out.

    Args:
        data_root: the folder with the splits, or a folder that contains only that folder; paths in a CSV file are
            relative to the folder of that file, or absolute, and do not lead out of it. query/query, as some archives
            unpack, is accepted as query.
        train: read the training images too.
        cameras: "name": the part of a file name before its first "_", or the column camera of a CSV file. "none": there
            are none. "auto": "name" if the column exists or the names are cameras, see `choose_rule`, which also knows
            the names of Market-1501; else "none".
        bbox: "crop": images of a CSV file are cropped by its column bbox, if it has one; "ignore": they are not.

    Raises:
        InputError: a split is missing or without images, none of its images has a camera, or a CSV file cannot be
            used.
    """
    root = unwrapped(data_root, _has_queries) or unwrapped(data_root, _has_test) or data_root
    warnings = inner_folder_lines("folder", root, data_root)
    notes: list[str] = []
    leave_one_out = _has_test(root) and not any(_exists(root, name) for name in SPLITS)
    test_names = ONE_SPLIT if leave_one_out else SPLITS
    listings = {
        name: _list(root, name, cameras, bbox, warnings, notes)
        for name in (*(("train",) if train else ()), *test_names)
    }
    other = [path for name in OTHER_SPLITS if name not in test_names for path in (root / name, root / f"{name}.csv")]
    known = f"train and {' and '.join(test_names)}" if leave_one_out else "train, query and gallery"
    warnings += [f"folder: {path} is not read: splits are {known}" for path in other if os.path.lexists(path)]
    decision = _decide(cameras, {name: listings[name] for name in test_names})
    splits = {
        name: _with_cameras(listing, decision.rule, name == "train" and cameras == "auto", warnings)
        for name, listing in listings.items()
    }
    splits = one_spelling("folder", splits, warnings)
    warnings += look_alikes("folder", splits)
    test = [seen for name in test_names for seen in splits[name]]
    identities, camera_places = positions(s.identity for s in test), positions(s.camera for s in test)
    number = None if decision.rule is None else camera_places.__getitem__
    sides = [listed(splits[name], identities.__getitem__, number) for name in test_names]
    remedy = _remedy(test_names, listings)
    source = CameraSource(decision.taken_from, remedy, list(camera_places), list(identities), decision.remark)
    if decision.rule is None:
        notes.append(f"cameras: none ({decision.taken_from}): a query ignores its own file only")
    if leave_one_out:
        notes.append("folder: test is evaluated leave-one-out: each image is searched for among all others")
    labels: dict[str, int] = {}
    train_list, train_camera_names = None, None
    if train:
        warnings += in_both("folder", (s.identity for s in splits["train"]), identities)
        labels = positions(s.identity for s in splits["train"])
        train_cameras = positions(s.camera for s in splits["train"])
        number = None if decision.rule is None else train_cameras.__getitem__
        train_camera_names = list(train_cameras)
        train_list = listed(splits["train"], labels.__getitem__, number)
    data = ReIDData(
        "folder",
        list(labels),
        train_list,
        sides[0],
        sides[-1],
        warnings,
        notes,
        source,
        leave_one_out=leave_one_out,
        train_camera_names=train_camera_names,
    )
    if decision.rule is None:
        warnings += describe_copies("folder", data.test_images, data.test_files, len(data.query))
    return data


def _exists(root: Path, split: str) -> bool:
    return (root / split).is_dir() or os.path.lexists(root / f"{split}.csv")


def _has_queries(root: Path) -> bool:
    return _exists(root, SPLITS[0])


def _has_test(root: Path) -> bool:
    return _exists(root, ONE_SPLIT[0])


def _list(
    data_root: Path, split: str, cameras: CameraMode, bbox: BoxMode, warnings: list[str], notes: list[str]
) -> Listing:
    folder, table = data_root / split, data_root / f"{split}.csv"
    where = f"folder: {folder}"
    if os.path.lexists(table):  # a dangling link is an error, not a missing table
        sightings, has_cameras = read_table(table, notes, warnings, cameras, bbox)
        if folder.is_dir():
            warnings += leftovers(where, folder, (file_of(seen.image) for seen in sightings), 1, table.name)
        return Listing(where, sightings, True, has_cameras)
    if not folder.is_dir():
        raise InputError(f"folder: expected {LAYOUT} in {data_root}, but {what_is_in(data_root)}")
    inner = undoubled(folder)
    if subfolders(inner):  # otherwise, the only identity would be called like the split
        warnings += inner_folder_lines("folder", inner, folder)
        folder, where = inner, f"folder: {inner}"
    files = [file for identity in subfolders(folder) for file in image_files(identity)]
    if not files:
        raise InputError(
            f"folder: expected IDENTITY/{'' if cameras == 'none' else 'CAMERA_'}*.jpg in {folder}, but "
            f"{what_is_in(folder)}{describe_left_out(folder, 1)}"
        )
    warnings += leftovers(where, folder, files, 1)
    return Listing(where, [Sighting(file, file.parent.name, NO_CAMERA) for file in files], False, False)


def _decide(cameras: CameraMode, test: Mapping[str, Listing]) -> Decision:
    """Which cameras the images of query and gallery have."""
    if cameras == "none":
        return Decision(None, "--cameras none")
    tables = [listing.is_table for listing in test.values()]
    if cameras == "name":
        rule = BY_PREFIX
        taken_from = COLUMN if all(tables) else f"{rule.taken_from}, or {COLUMN}" if any(tables) else rule.taken_from
        return Decision(rule, taken_from)
    without = [name for name, listing in test.items() if listing.is_table and not listing.has_cameras]
    if without:
        files = [f"{file_of(seen.image).name}" for seen in test[without[0]].sightings[:2]]
        return Decision(None, f"--cameras auto: {without[0]}.csv names no cameras, as of {' and '.join(files)}")
    if all(tables):
        return Decision(BY_PREFIX, COLUMN)
    choice = choose_rule(
        [
            NamedImage(file_of(seen.image), seen.identity, seen.camera, name != "gallery", name != "query")
            for name, listing in test.items()
            for seen in listing.sightings
        ]
    )
    if choice.rule is None:
        return Decision(None, f"--cameras auto: {choice.why}; --cameras name takes such names for cameras")
    column = f", or {COLUMN}" if any(tables) else ""
    remark = f"--cameras auto: {choice.why}; --cameras none ignores them"
    return Decision(choice.rule, f"{choice.rule.taken_from}{column}", remark)


def _remedy(test_names: tuple[str, ...], listings: Mapping[str, Listing]) -> str:
    """How a user sets other cameras."""
    rename = "" if all(listings[name].is_table for name in test_names) else "name the files CAMERA_*.jpg, or "
    tables = " and ".join(f"{name}.csv" for name in test_names)
    return f"{rename}give cameras in the column camera of {tables}, or --cameras none if there are none"


def _with_cameras(listing: Listing, rule: CameraRule | None, are_optional: bool, warnings: list[str]) -> list[Sighting]:
    """The images of a split with the cameras of a rule, or with those of a table.

    Args:
        are_optional: images whose names have none stay, as training needs no cameras.
        warnings: lines on images that are left out are added.
    """
    if rule is None:
        return [seen._replace(camera=NO_CAMERA) for seen in listing.sightings]
    if listing.is_table:
        return listing.sightings
    by_file = {seen.image: seen for seen in listing.sightings}

    def sighting(file: Path) -> Sighting | None:
        camera = rule.camera(file.name)
        return by_file[file]._replace(camera=camera) if camera or are_optional else None

    naming = NAMING if rule is BY_PREFIX else rule.taken_from
    return parsed([*by_file], sighting, listing.where, naming, warnings)
