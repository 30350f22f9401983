"""A user's own images: one folder per class."""

from pathlib import Path

from dual_cross_attention.data.fgvc.class_folders import (
    class_folders,
    in_no_class,
    list_classes,
    same_but_for_case,
)
from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.fgvc.unsplit_folder import load_unsplit
from dual_cross_attention.data.folders import (
    EXTENSIONS,
    image_files,
    inner_folder_lines,
    subfolders,
    undoubled,
    unwrapped,
    what_is_in,
)
from dual_cross_attention.data.listing import Listing, folder_id, left_out_warnings
from dual_cross_attention.data.names import composed_order
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, few

LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg (test/ will do in place of val/), or CLASS/*.jpg and --val_fraction 0.2"
SOURCE = "images of your own, sorted into one folder per class"
TESTS = ("val", "test")
"""Folders with test images; the first that exists is taken."""
LIKE_TESTS = {"dev", "eval", "holdout", "test", "testing", "val", "valid", "validation"}
"""Names, in any case, of folders that look like another test split."""
LIKE_SPLITS = LIKE_TESTS | {"train", "training"}
"""Names, in any case, of folders that look like a split."""


def load_folder(
    data_root: Path, train: bool = True, split: str | None = None, val_fraction: float | None = None
) -> FineGrainedData:
    """Reads train/CLASS/ and val/CLASS/ (or test/CLASS/), or splits a folder of class folders.

    Classes are the folders in train/, sorted by name; images in their subfolders are taken, too. A folder with the name
    of a split is taken for one if it holds folders, or if there are several of these names; if it is the only one and
    holds images, it is a class. Class folders without a split need `val_fraction`, see `choose_validation`.

    Names that differ only in how Unicode composes them are the same class, whose name is the composed one. Warnings
    say what is left out: files that look like images and have another extension, lie in no class folder, or are
    hidden, and a second folder to test on.

    Args:
        data_root: the folder that holds train/ and val/ (or test/), or class folders; or one that holds nothing but
            that folder.
        train: False: for evaluation. train/ is not read and need not exist; classes are those with test images. Of
            class folders without a split, `val_fraction` chooses the images; unset, all are test images.
        split: "val" or "test": the folder to test on; None: val/ if it exists, else test/.
        val_fraction: of the images of each class, the share of validation images.

    Raises:
        InputError: a folder is missing, a class of train/ is without images, val/ has a class that train/ has not,
            class folders have no split and there is no `val_fraction`, or a split exists and there is one.
    """
    root = _find_root(data_root)
    warnings = inner_folder_lines("folder", root, data_root)
    if not _split_folders(root):
        warnings += [
            f"folder: {escape(folder)} has the name of a split, but holds images and no folders: it is a class"
            for folder in _named_like_splits(root)
        ]
        return load_unsplit(root, LAYOUT, train, split, val_fraction, warnings)
    tests = [root / name for name in ((split,) if split else TESTS) if (root / name).is_dir()]
    if not tests or (train and not (root / "train").is_dir()):
        raise InputError(f"folder: {_expected(root, train, split)}")
    if train and val_fraction is not None:
        raise InputError(
            f"--val_fraction splits class folders without a split, and {escape(root)} has train/ and {tests[0].name}/: "
            f"leave it out, or give --data_root {escape(root / 'train')} to split only those images"
        )
    if val_fraction is not None:
        warnings.append(f"folder: {escape(root)} has {tests[0].name}/, so val_fraction {val_fraction:g} has no effect")
    return (_load_splits if train else _load_test)(root, tests[0], split, warnings)


def _find_root(data_root: Path) -> Path:
    """Returns the folder with the splits or the class folders: `data_root`, or the only folder in it."""

    def is_complete(folder: Path) -> bool:
        return (folder / "train").is_dir() and any((folder / name).is_dir() for name in TESTS)

    for is_it in (is_complete, lambda folder: bool(_split_folders(folder)), lambda folder: len(subfolders(folder)) > 1):
        if root := unwrapped(data_root, is_it):
            return root
    return data_root


def _split_folders(root: Path) -> list[Path]:
    """Returns the folders that are splits by their names, see `load_folder`."""
    named = _named_like_splits(root)
    return named if len(named) > 1 else [folder for folder in named if subfolders(folder) or not image_files(folder)]


def _named_like_splits(root: Path) -> list[Path]:
    return [folder for folder in subfolders(root) if folder.name.lower() in LIKE_SPLITS]


def _expected(root: Path, train: bool, split: str | None) -> str:
    """An error message that names the missing splits."""
    if not train:
        wanted = f"{split}/ (of --split {split})" if split else "val/ or test/"
        return f"expected {wanted} in {escape(root)}, with a folder per class, but {what_is_in(root)}"
    only_train = _split_folders(root) == [root / "train"]
    hint = f"; to split train/ itself: --data_root {escape(root / 'train')} --val_fraction 0.2" if only_train else ""
    return f"expected {LAYOUT} in {escape(root)}, but {what_is_in(root)}{hint}"


def _load_splits(root: Path, test_folder: Path, split: str | None, warnings: list[str]) -> FineGrainedData:
    """Loads train/ and a test folder."""
    train, test = _class_level(root / "train", warnings), _class_level(test_folder, warnings)
    above = {folder_id(folder) for folder in (root, train)}
    folders, test_folders = class_folders(train, above), class_folders(test, above)
    classes = composed_order(path.name for paths in folders.values() for path in paths)
    unknown = [name for name in test_folders if name not in folders]
    if unknown:
        raise InputError(
            f"folder: {escape(test)} has the class {unknown[0]!r}, but {escape(train)} has not; it has {few(classes)}"
        )
    if not split:
        warnings += _other_splits(root, test_folder, "is taken to test on")
    at_root = Listing()
    warnings += [*in_no_class(root, at_root), *left_out_warnings(f"folder: {escape(root)}", at_root)]
    warnings += same_but_for_case(f"folder: {escape(train)}", classes)
    train_list, missing = list_classes(train, folders, classes, above, warnings)
    for name in missing:
        folder = folders[name][0]
        raise InputError(
            f"folder: expected images ({', '.join(sorted(EXTENSIONS))}) in {escape(folder)}, but {what_is_in(folder)}"
        )
    test_list, missing = list_classes(test, test_folders, classes, {*above, folder_id(test)}, warnings)
    _warn_of_empty(test, [test_folders[name][0] for name in missing if name in test_folders], warnings)
    return FineGrainedData("folder", classes, train_list, test_list, warnings)


def _load_test(root: Path, test_folder: Path, split: str | None, warnings: list[str]) -> FineGrainedData:
    """Loads a test folder only."""
    test = _class_level(test_folder, warnings)
    above = {folder_id(folder) for folder in (root, test, root / "train") if folder.is_dir()}
    folders = class_folders(test, above)
    classes = composed_order(path.name for paths in folders.values() for path in paths)
    if not split:
        warnings += _other_splits(root, test_folder, "is evaluated")
    images, missing = list_classes(test, folders, classes, above, warnings)
    _warn_of_empty(test, [folders[name][0] for name in missing], warnings)
    return FineGrainedData("folder", classes, None, images, warnings)


def _class_level(split: Path, warnings: list[str]) -> Path:
    """Returns the folder of a split, or train/train, as some archives unpack."""
    inner = undoubled(split)
    warnings += inner_folder_lines("folder", inner, split)
    return inner


def _warn_of_empty(test: Path, empty: list[Path], warnings: list[str]) -> None:
    if empty:
        warnings.append(
            f"folder: {escape(test)}: class folders without an image: {len(empty):,}, such as {escape(empty[0])}"
        )


def _other_splits(root: Path, taken: Path, how: str) -> list[str]:
    others = [
        folder.name for folder in subfolders(root) if folder.name.lower() in LIKE_TESTS and folder.name != taken.name
    ]
    if not others:
        return []
    names = " and ".join(f"{escape(name)}/" for name in others)
    hint = "; dcal eval --split test evaluates test/" if "test" in others else ""
    return [
        f"folder: {escape(root)} has {taken.name}/ and {names}: {taken.name}/ {how}, {names} "
        f"{'is' if len(others) == 1 else 'are'} not read{hint}"
    ]
