"""A user's own images: one folder per class."""

from collections import defaultdict
from pathlib import Path

from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.folders import (
    EXTENSIONS,
    inner_folder_lines,
    is_visible,
    subfolders,
    undoubled,
    unwrapped,
    what_is_in,
)
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.listing import FolderId, Listing, folder_id, left_out_warnings, list_images
from dual_cross_attention.data.names import composed, composed_order
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg (test/ will do in place of val/)"
SOURCE = "images of your own, sorted into one folder per class"
TESTS = ("val", "test")
"""Folders to test on; the first that is there is taken."""
LIKE_TESTS = {"dev", "eval", "holdout", "test", "testing", "val", "valid", "validation"}
"""Names, in any case, of folders that look like another test split."""


def load_folder(data_root: Path) -> FineGrainedData:
    """Classes are the folders in train/, sorted by name; images in their subfolders are taken, too.

    Names that differ only in how Unicode composes them are the same class, whose name is the composed one. Warnings
    say what is left out: files that look like images and have another extension, lie in no class folder, or are
    hidden, and a second folder to test on.

    Args:
        data_root: the folder that holds train/ and val/ (or test/), or one that holds nothing but that folder.

    Raises:
        InputError: a folder is missing, a class of train/ is without images, or val/ has a class that train/ has not.
    """
    root = unwrapped(data_root, lambda folder: (folder / "train").is_dir()) or data_root
    tests = [root / name for name in TESTS if (root / name).is_dir()]
    if not ((root / "train").is_dir() and tests):
        raise InputError(f"folder: expected {LAYOUT} in {escape(root)}, but {what_is_in(root)}")
    warnings = inner_folder_lines("folder", root, data_root)
    train, test = _class_level(root / "train", warnings), _class_level(tests[0], warnings)
    above = {folder_id(folder) for folder in (root, train)}
    folders, test_folders = _class_folders(train, above), _class_folders(test, above)
    classes = composed_order(path.name for paths in folders.values() for path in paths)
    unknown = [name for name in test_folders if name not in folders]
    if unknown:
        raise InputError(
            f"folder: {escape(test)} has the class {unknown[0]!r}, but {escape(train)} has not; it has {_few(classes)}"
        )
    warnings += _other_splits(root, tests[0])
    at_root = Listing()
    warnings += [*_in_no_class(root, at_root), *left_out_warnings(f"folder: {escape(root)}", at_root)]
    train_list, missing = _listed(train, folders, classes, above, warnings)
    for name in missing:
        folder = folders[name][0]
        raise InputError(
            f"folder: expected images ({', '.join(sorted(EXTENSIONS))}) in {escape(folder)}, but {what_is_in(folder)}"
        )
    test_list, missing = _listed(test, test_folders, classes, {*above, folder_id(test)}, warnings)
    if empty := [test_folders[name][0] for name in missing if name in test_folders]:
        warnings.append(
            f"folder: {escape(test)}: class folders without an image: {len(empty):,}, such as {escape(empty[0])}"
        )
    return FineGrainedData("folder", classes, train_list, test_list, warnings)


def _class_level(split: Path, warnings: list[str]) -> Path:
    """The folder of a split, or train/train, where unpacking an archive has made it so."""
    inner = undoubled(split)
    warnings += inner_folder_lines("folder", inner, split)
    return inner


def _class_folders(split: Path, above: set[FolderId]) -> dict[str, list[Path]]:
    """The folders of each class by its composed name; several where the same name is spelled in several ways."""
    folders: dict[str, list[Path]] = defaultdict(list)
    for folder in subfolders(split):
        if folder_id(folder) not in above:
            folders[composed(folder.name)].append(folder)
    return folders


def _listed(
    split: Path,
    folders: dict[str, list[Path]],
    classes: list[str],
    above: set[FolderId],
    warnings: list[str],
) -> tuple[ImageList, list[str]]:
    """The images of a split with their labels, and the classes without any; warnings are added."""
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
    warnings += [*_in_no_class(split, left_out), *left_out_warnings(where, left_out)]
    seen = {*labels}
    return ImageList(images, labels), [name for label, name in enumerate(classes) if label not in seen]


def _in_no_class(folder: Path, left_out: Listing) -> list[str]:
    """A warning if images are in a folder itself, where those in class folders are taken; other files are added."""
    outside = list_images(folder, deep=False)
    left_out.other += outside.other
    left_out.hidden += outside.hidden
    if not outside.images:
        return []
    return [
        f"folder: {escape(folder)}: images in no class folder are left out: {len(outside.images):,}, such as "
        f"{escape(outside.images[0])}"
    ]


def _other_splits(root: Path, taken: Path) -> list[str]:
    others = [
        folder.name for folder in subfolders(root) if folder.name.lower() in LIKE_TESTS and folder.name != taken.name
    ]
    if not others:
        return []
    names = " and ".join(f"{escape(name)}/" for name in others)
    return [
        f"folder: {escape(root)} has {taken.name}/ and {names}: {taken.name}/ is taken to test on, {names} "
        f"{'is' if len(others) == 1 else 'are'} not read"
    ]


def _few(names: list[str], shown: int = 10) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
