"""A folder of class folders without a split."""

from functools import partial
from pathlib import Path

from dual_cross_attention.data.duplicates import identical_files
from dual_cross_attention.data.fgvc.class_folders import class_folders, list_classes, same_but_for_case
from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.fgvc.unsplit import UnsplitImages, split_unsplit
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
    images = UnsplitImages(
        "folder",
        escape(root),
        f"{escape(root)} holds {len(classes):,} class folders with {len(listed):,} images and no train/ or val/",
        listed,
        classes,
        [path.relative_to(root).as_posix() for path in listed.images],
        partial(identical_files, listed.images),
        "to evaluate all images of a folder, put them into test/CLASS/",
        warnings=warnings,
    )
    return split_unsplit(images, train, split, val_fraction)


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
