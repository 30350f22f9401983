"""A folder of class folders without a split."""

import os
from collections.abc import Sequence
from pathlib import Path

from dual_cross_attention.data.duplicates import identical_files
from dual_cross_attention.data.fgvc.class_folders import class_folders, list_classes, same_but_for_case
from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.fgvc.hash_split import choose_validation
from dual_cross_attention.data.folders import EXTENSIONS, what_is_in
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.listing import folder_id, list_images
from dual_cross_attention.data.names import composed_order
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, few


def load_unsplit(
    root: Path, layout: str, train: bool, split: str | None, val_fraction: float | None, warnings: list[str]
) -> FineGrainedData:
    """Reads CLASS/*.jpg and splits the images by a hash of their names, see `choose_validation`.

    Folders without images are not classes; a warning names them.

    Args:
        root: the folder that holds the class folders.
        layout: of the dataset, for an error if there are no images.
        train, split, val_fraction: see `load_folder`.
        warnings: of the dataset; warnings are added.

    Raises:
        InputError: no images, no `val_fraction` to train with, a split that does not exist, or a class folder whose
            images all have other extensions.
    """
    listed, classes = _list_all(root, warnings)
    if not classes:
        raise InputError(f"folder: expected {layout} in {escape(root)}, but {what_is_in(root)}")
    found = f"{escape(root)} holds {len(classes):,} class folders with {len(listed):,} images and no train/ or val/"
    if split and not (split == "val" and val_fraction is not None):
        raise InputError(f"--split {split}: {found}, so there is no {split} split")
    if val_fraction is None and train:
        raise InputError(f"folder: {found}: add --val_fraction 0.2 to split them into training and validation images")
    if val_fraction is None:
        notes = [f"folder: {found}: all images are test images"]
        return FineGrainedData("folder", classes, None, listed, warnings, notes)
    copies = identical_files(listed.images)
    names = [path.relative_to(root).as_posix() for path in listed.images]
    is_validation = choose_validation(names, listed.labels, copies, val_fraction)
    sides = {side: _selected(listed, [each is side for each in is_validation]) for side in (False, True)}
    notes = [
        f"folder: {escape(root)}: {len(listed):,} images of {len(classes):,} classes are split by a hash of their "
        f"names, {len(sides[False]):,} to train on and {len(sides[True]):,} to validate on (val_fraction "
        f"{val_fraction:g})"
    ]
    notes += _copy_notes(names, listed.labels, copies)
    if not train:
        notes[0] += "; the latter are evaluated (to evaluate all images of a folder, put them into test/CLASS/)"
    else:
        validated = {*sides[True].labels}
        if without := [name for label, name in enumerate(classes) if label not in validated]:
            warnings.append(
                f"folder: {escape(root)}: classes without a validation image: {len(without):,} ({few(without)}): "
                "a class needs two distinct images to have one; theirs are training images"
            )
    return FineGrainedData("folder", classes, sides[False] if train else None, sides[True], warnings, notes)


def _list_all(root: Path, warnings: list[str]) -> tuple[ImageList, list[str]]:
    """Lists all images of the class folders, and the classes; warnings are added."""
    above = {folder_id(root)}
    folders = class_folders(root, above)
    names = composed_order(path.name for paths in folders.values() for path in paths)
    listed, empty = list_classes(root, folders, names, above, warnings)
    for name in empty:
        if other := list_images(folders[name][0], above).other:
            raise InputError(
                f"folder: expected images ({', '.join(sorted(EXTENSIONS))}) in {escape(folders[name][0])}, but found "
                f"{escape(other[0].name)}: convert or rename them, or move the folder away"
            )
    classes = [name for name in names if name not in {*empty}]
    if empty and classes:
        warnings.append(f"folder: {escape(root)}: folders without images are no classes: {few(empty)}")
    warnings += same_but_for_case(f"folder: {escape(root)}", classes)
    label_of = {name: label for label, name in enumerate(classes)}
    return ImageList(listed.images, [label_of[names[place]] for place in listed.labels]), classes


def _selected(listed: ImageList, wanted: Sequence[bool]) -> ImageList:
    taken = [position for position, is_wanted in enumerate(wanted) if is_wanted]
    return ImageList([listed.images[position] for position in taken], [listed.labels[position] for position in taken])


def _copy_notes(names: Sequence[str], labels: Sequence[int], copies: Sequence[Sequence[int]]) -> list[str]:
    """Notes about byte-identical files within a class and across classes."""
    within = [group for group in copies if len({labels[position] for position in group}) == 1]
    across = [group for group in copies if len({labels[position] for position in group}) > 1]
    lines = []
    for groups, what, where in (
        (within, "images are byte-identical copies", "the copies of an image are in the same split"),
        (across, "images are byte-identical and of different classes", "they are training images"),
    ):
        if groups:
            example = " = ".join(escape(names[position].replace("/", os.sep)) for position in groups[0][:2])
            lines.append(f"folder: {sum(map(len, groups)):,} {what}, such as {example}: {where}")
    return lines
