"""Splitting images that have no split, or evaluating all of them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.fgvc.hash_split import choose_validation
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, few


@dataclass(frozen=True)
class UnsplitImages:
    """Images without a split, and what messages say of them.

    Args:
        dataset: the dataset's name.
        where: folder or file that holds them, escaped.
        found: what it holds, as the beginning of a sentence.
        images: all of them; a sequence with `select(positions)` stays lazy.
        classes: names, by label.
        names: names of the images in the dataset, which decide the split.
        copies: finds groups of positions of byte-identical files.
        how_to_test_all: what evaluates all images, where `val_fraction` is set.
        coarse_classes: see `FineGrainedData`.
        warnings, notes: of the dataset.
        kind: what the names are, in a note.
    """

    dataset: str
    where: str
    found: str
    images: ImageList
    classes: list[str]
    names: Sequence[str]
    copies: Callable[[], Sequence[Sequence[int]]]
    how_to_test_all: str
    coarse_classes: list[str] | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kind: str = "names"


def split_unsplit(given: UnsplitImages, train: bool, split: str | None, val_fraction: float | None) -> FineGrainedData:
    """Splits images by a hash of their names, see `choose_validation`; for evaluation without `val_fraction`, all are
    test images.

    Args:
        given: the images.
        train, split, val_fraction: see `load_fgvc`.

    Raises:
        InputError: no `val_fraction` to train with, or a split that does not exist.
    """
    listed, classes, start = given.images, given.classes, f"{given.dataset}: {given.where}"
    if split and not (split == "val" and val_fraction is not None):
        raise InputError(f"--split {split}: {given.found}, so there is no {split} split")
    if val_fraction is None and train:
        raise InputError(
            f"{given.dataset}: {given.found}: add --val_fraction 0.2 to split them into training and validation images"
        )
    whole = FineGrainedData(given.dataset, classes, None, listed, given.warnings, given.notes, given.coarse_classes)
    if val_fraction is None:
        return replace(whole, notes=[*given.notes, f"{given.dataset}: {given.found}: all images are test images"])
    copies = given.copies()
    is_validation = np.array(choose_validation(given.names, listed.labels, copies, val_fraction))
    training, validation = (_selected(listed, np.flatnonzero(side)) for side in (~is_validation, is_validation))
    notes = [
        f"{start}: {len(listed):,} images of {len(classes):,} classes are split by a hash of their {given.kind}, "
        f"{len(training):,} to train on and {len(validation):,} to validate on (val_fraction {val_fraction:g})"
    ]
    notes += _copy_notes(given, copies)
    warnings = [*given.warnings]
    if not train:
        notes[0] += f"; the latter are evaluated ({given.how_to_test_all})"
    else:
        validated = {*np.asarray(validation.labels).tolist()}
        if without := [name for label, name in enumerate(classes) if label not in validated]:
            warnings.append(
                f"{start}: classes without a validation image: {len(without):,} ({few(without)}): "
                "a class needs two distinct images to have one; theirs are training images"
            )
    return replace(
        whole, train=training if train else None, test=validation, warnings=warnings, notes=[*given.notes, *notes]
    )


def _selected(listed: ImageList, positions: np.ndarray) -> ImageList:
    if select := getattr(listed.images, "select", None):
        return ImageList(select(positions), np.asarray(listed.labels)[positions])
    taken = positions.tolist()
    return ImageList([listed.images[position] for position in taken], [listed.labels[position] for position in taken])


def _copy_notes(given: UnsplitImages, copies: Sequence[Sequence[int]]) -> list[str]:
    """Notes about byte-identical files within a class and across classes."""
    labels = given.images.labels
    within = [group for group in copies if len({labels[position] for position in group}) == 1]
    across = [group for group in copies if len({labels[position] for position in group}) > 1]
    lines = []
    for groups, what, where in (
        (within, "images are byte-identical copies", "the copies of an image are in the same split"),
        (across, "images are byte-identical and of different classes", "they are training images"),
    ):
        if groups:
            example = " = ".join(escape(given.names[position].replace("/", os.sep)) for position in groups[0][:2])
            lines.append(f"{given.dataset}: {sum(map(len, groups)):,} {what}, such as {example}: {where}")
    return lines
