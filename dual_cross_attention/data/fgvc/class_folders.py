"""Listing a folder of class folders."""

from collections import defaultdict
from pathlib import Path

from dual_cross_attention.data.folders import is_visible, subfolders
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.listing import FolderId, Listing, folder_id, left_out_warnings, list_images
from dual_cross_attention.data.names import composed
from dual_cross_attention.text import escape


def class_folders(split: Path, above: set[FolderId]) -> dict[str, list[Path]]:
    """Folders of each class by its composed name; several if the name has several Unicode spellings."""
    folders: dict[str, list[Path]] = defaultdict(list)
    for folder in subfolders(split):
        if folder_id(folder) not in above:
            folders[composed(folder.name)].append(folder)
    return folders


def list_classes(
    split: Path,
    folders: dict[str, list[Path]],
    classes: list[str],
    above: set[FolderId],
    warnings: list[str],
) -> tuple[ImageList, list[str]]:
    """Lists the images of the class folders of a split.

    Args:
        split: the folder that holds the class folders.
        folders: the folders of each class, from `class_folders`.
        classes: class names, by label.
        above: folders that are not read, even through links.
        warnings: warnings about files that are left out are appended.

    Returns:
        The images with their labels, and the names of the classes without images.
    """
    images: list[Path] = []
    labels: list[int] = []
    left_out = Listing()
    for label, name in enumerate(classes):
        for folder in folders.get(name, []):
            found = list_images(folder, above)
            images += found.images
            labels += [label] * len(found.images)
            left_out.add(found)
    where = f"folder: {escape(split)}"
    if twice := [paths for paths in folders.values() if len(paths) > 1]:
        warnings.append(
            f"{where}: folders whose names Unicode composes differently are taken together, as one class each: "
            f"{len(twice):,} classes, such as {escape(twice[0][0].name)}"
        )
    if left_out.nested:
        warnings.append(
            f"{where}: {len(left_out.nested):,} of {len(images):,} images are in subfolders of class folders and are "
            f"taken, such as {escape(left_out.nested[0])}"
        )
    left_out.repeated += [folder for folder in subfolders(split) if folder_id(folder) in above]
    for hidden in sorted(path for path in split.iterdir() if path.is_dir() and not is_visible(path.name)):
        left_out.add(list_images(hidden, above, visible=False))
    warnings += [*in_no_class(split, left_out), *left_out_warnings(where, left_out)]
    seen = {*labels}
    return ImageList(images, labels), [name for label, name in enumerate(classes) if label not in seen]


def in_no_class(folder: Path, left_out: Listing) -> list[str]:
    """Warns about images directly in a folder, where only class folders are read; other files are added."""
    outside = list_images(folder, deep=False)
    left_out.other += outside.other
    left_out.hidden += outside.hidden
    if not outside.images:
        return []
    return [
        f"folder: {escape(folder)}: images in no class folder are left out: {len(outside.images):,}, such as "
        f"{escape(outside.images[0])}"
    ]


def same_but_for_case(where: str, classes: list[str]) -> list[str]:
    """Warns about class names that differ in case only."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        by_name[name.casefold()].append(name)
    pairs = [names for names in by_name.values() if len(names) > 1]
    if not pairs:
        return []
    example = " and ".join(escape(name) for name in pairs[0][:2])
    return [f"{where}: names that differ in case only are different classes: {len(pairs):,}, such as {example}"]
