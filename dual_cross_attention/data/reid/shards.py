"""Re-identification from tar archives."""

from functools import partial
from pathlib import Path

import numpy as np

from dual_cross_attention.data.names import composed, composed_order
from dual_cross_attention.data.reid.cameras import CameraSource
from dual_cross_attention.data.reid.identities import IdentityList, ReIDData
from dual_cross_attention.data.reid.names import in_both
from dual_cross_attention.data.shards.columns import IndexedImages, IndexedNumbers
from dual_cross_attention.data.shards.discovery import find_shards
from dual_cross_attention.data.shards.index import Index, index_of
from dual_cross_attention.data.shards.samples import Label
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

LAYOUT = (
    "train-*.tar, query-*.tar and gallery-*.tar, or a pattern of the first, DIR/train-{000000..000127}.tar; "
    "members are KEY.jpg with KEY.json (identity, and camera if there are any); test-*.tar in place of "
    "query and gallery"
)
SOURCE = "dcal shard, or any writer of WebDataset's convention"
CAMERA_REMEDY = "write the archives anew with other cameras (dcal shard takes those of the dataset that it reads)"
SIDES = ("query", "gallery")
BLOCK = 65_536
"""Approximate number of images that are shuffled at a time, of complete identities."""


def load_shards(data_root: Path, train: bool = True) -> ReIDData:
    """Loads a dataset from archives. Training labels, and the images, are in the order that `dcal shard` recorded, else
    sorted.

    Numeric identities and cameras of query and gallery are kept; names are numbered in sorted order, and both share the
    numbers. Without query and gallery, the images of test-*.tar are evaluated leave-one-out.

    Args:
        data_root: see `find_shards`.
        train: read the training archives too.

    Raises:
        InputError: archives are missing or cannot be used.
    """
    shards = find_shards(data_root, "reid", [["query", "test"], ["gallery", "test"]], train)
    warnings = shards.warnings
    test_names = [*dict.fromkeys(shards.names.values())]
    if "test" in test_names and len(test_names) > 1:
        raise InputError(
            f"shards: expected query-*.tar and gallery-*.tar, or test-*.tar alone, in {escape(shards.folder)}, got "
            f"{' and '.join(sorted(test_names))}"
        )
    leave_one_out = test_names == ["test"]
    tested = [index_of(shards.splits[split], "reid", split, warnings) for split in SIDES[: 1 if leave_one_out else 2]]
    if len({bool(side.cameras) for side in tested}) > 1:
        raise InputError(
            f"shards: expected a camera of each image of query and gallery, or of none, in {escape(shards.folder)}, "
            f"got none in {SIDES[1 if tested[0].cameras else 0]}"
        )
    numbers = [_numbers(*(getattr(side, name) for side in tested)) for name in ("labels", "cameras")]
    sides = [_listed(side, *numbers) for side in tested]
    identity_names, camera_names = map(_names, numbers)
    source = CameraSource("the camera of each KEY.json", CAMERA_REMEDY, camera_names, identity_names)
    notes = [] if tested[0].cameras else ["cameras: none (no KEY.json names one): a query finds all gallery images"]
    if leave_one_out:
        notes = ["cameras: none (no KEY.json names one)"] if notes else []
        notes.append("shards: test is evaluated leave-one-out: each image is searched for among all others")
    make = partial(ReIDData, "shards", notes=notes, camera_source=source, leave_one_out=leave_one_out)
    if not train:
        return make([], None, sides[0], sides[-1], warnings)
    index = index_of(shards.splits["train"], "reid", "train", warnings)
    identities = [composed(f"{label}") for label in (index.labels if shards.classes is None else shards.classes)]
    if len({*identities}) < len(identities):
        twice = next(name for name in identities if identities.count(name) > 1)
        raise InputError(
            f"shards: {escape(shards.folder)} has the identity {escape(twice)} in two spellings, which Unicode "
            "composes differently: write the archives with one of them"
        )
    labels: dict[Label, int] = {name: label for label, name in enumerate(identities)}
    if unknown := [label for label in index.labels if composed(f"{label}") not in labels]:
        raise InputError(
            f"shards: {escape(index.archives[0])} (or one after it) has the identity "
            f"{escape(unknown[0])}, which is none of the {len(identities):,} that dcal shard has written down"
        )
    by_label = {label: labels[composed(f"{label}")] for label in index.labels}
    cameras = _numbers(index.cameras)
    training = _listed(index, by_label, cameras, BLOCK)
    # Numbers may start at 0 in each split; names are the same in all splits.
    warnings += in_both(
        "shards", (composed(name) for name in index.labels if isinstance(name, str)), identity_names or []
    )
    return make(identities, training, sides[0], sides[-1], warnings, train_camera_names=_names(cameras))


def _numbers(*sides: list[Label]) -> dict[Label, int]:
    """Returns the number of each label."""
    labels = {label for side in sides for label in side}
    if all(isinstance(label, int) for label in labels):
        return {label: label for label in labels}
    if all(isinstance(label, str) for label in labels):
        places = {name: place for place, name in enumerate(composed_order(labels))}
        return {label: places[composed(label)] for label in labels}
    raise InputError(
        "shards: expected identities and cameras of query and gallery as numbers in both, or as names in both, got "
        "numbers in one and names in the other"
    )


def _names(numbers: dict[Label, int]) -> list[str] | None:
    """Inverse of `_numbers`: names by number; None if labels are numbers already."""
    if not all(isinstance(name, str) for name in numbers):
        return None
    by_number = {number: composed(name) for name, number in numbers.items()}
    return [by_number[number] for number in range(len(by_number))]


def _listed(
    index: Index, identities: dict[Label, int], cameras: dict[Label, int], block: int | None = None
) -> IdentityList:
    tables = (
        np.array([identities[label] for label in index.labels], dtype=np.int64),
        np.array([cameras[label] for label in index.cameras], dtype=np.int64),
    )
    columns = [IndexedNumbers(index, field, table) for field, table in zip(("label", "camera"), tables, strict=True)]
    return IdentityList(IndexedImages(index), columns[0], columns[1] if index.cameras else None, block)
