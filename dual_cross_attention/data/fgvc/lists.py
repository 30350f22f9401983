"""List files with a line per image, as published with Grocery Store (Klasson et al. 2019)."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.fgvc.listed_classes import classes_of_images, listed_data, read_classes
from dual_cross_attention.data.fgvc.listed_images import ListedImage, check_once
from dual_cross_attention.data.folders import EXTENSIONS, inner_folder_lines, subfolders, what_is_in
from dual_cross_attention.data.listed_paths import listed_path
from dual_cross_attention.data.listing import not_listed_warnings
from dual_cross_attention.data.tables import SEPARATORS
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import read_text

LAYOUT = (
    "train.txt and val.txt (or test.txt) with lines `path, class` or `path, class, coarse class`, and, if classes have "
    "names, classes.csv"
)
SOURCE = "images of your own with list files, or https://github.com/marcusklasson/GroceryStoreDataset"
TESTS = ("val", "test")
"""Lists of test images; the first that exists is taken."""
CLASSES = "classes.csv"
SUFFIX = "|".join(re.escape(suffix) for suffix in sorted(EXTENSIONS))
IMAGE = re.compile(rf".*({SUFFIX})", re.IGNORECASE)
"""A path that ends with the suffix of an image."""
SPACED = re.compile(rf"(?P<path>.*({SUFFIX}))\s+(?P<words>\S.*)", re.IGNORECASE)
"""Such a path, which may have spaces, and the words after it."""


def load_lists(data_root: Path, train: bool = True, split: str | None = None) -> FineGrainedData:
    """Reads train.txt and val.txt (or test.txt): lines `path, class` or `path, class, coarse class`.

    Fields are separated by commas, semicolons, tabs or spaces; with spaces, a path with spaces in it ends with the
    suffix of an image. Paths are relative to the folder of the lists. Classes are those of classes.csv (see
    `read_classes`), in its order; without it, the words of the lists.

    Args:
        data_root: the folder of the lists, or one whose only folder with lists it is.
        train: False: for evaluation. train.txt need not exist.
        split: "val" or "test": the list to test on; None: val.txt if it exists, else test.txt.

    Raises:
        InputError: a list is missing or cannot be read, names an image twice, or one that does not exist or is outside
            of the folder, or has a class that classes.csv (or train.txt) has not.
    """
    root = _find_root(data_root)
    lists = {name: root / f"{name}.txt" for name in ("train", *TESTS) if (root / f"{name}.txt").is_file()}
    tests = [name for name in ((split,) if split else TESTS) if name in lists]
    if not tests or (train and "train" not in lists):
        wanted = LAYOUT if train else f"{split or 'val'}.txt{'' if split else ' or test.txt'}"
        raise InputError(f"lists: expected {wanted} in {escape(root)}, but {what_is_in(root)}; get it from {SOURCE}")
    warnings, notes = inner_folder_lines("lists", root, data_root), []
    images = {name: _read_list(path, notes) for name, path in lists.items()}  # all lists: they name the classes
    if (root / CLASSES).is_file():
        classes = read_classes(root / CLASSES, "lists", notes)
    else:
        classes = classes_of_images(image for each in images.values() for image in each)
    taken = tests[0]
    if not split and len(tests) > 1:
        notes.append(f"lists: {escape(root)} has val.txt and test.txt: test images are those of val.txt")
    warnings += _not_listed(root, images)
    names = {name: path.name for name, path in lists.items()}
    return listed_data("lists", images, classes, taken, train, names, warnings, notes)


def _find_root(data_root: Path) -> Path:
    """`data_root`, or the only folder in it with lists."""

    def has_lists(folder: Path) -> bool:
        return any((folder / f"{name}.txt").is_file() for name in ("train", *TESTS))

    if has_lists(data_root):
        return data_root
    found = [folder for folder in subfolders(data_root) if has_lists(folder)]
    return found[0] if len(found) == 1 else data_root


def _read_list(path: Path, notes: list[str]) -> list[ListedImage]:
    """The lines of a list; blank ones are skipped. Whether the images exist is not checked."""
    text = read_text(path, "lists")
    first = next(filter(str.strip, text.split("\n")), "")
    separator = _separator(first)
    if separator != ",":
        named = SEPARATORS.get(separator, "spaces")
        notes.append(f"lists: {escape(path.name)} is read with {named} between its fields")
    images: list[ListedImage] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"lists: {path}, line {number}"
        fields = [field.strip() for field in _fields(line, separator, where)]
        expected = (len(images[0].coarse) > 0) + 2 if images else None
        if len(fields) not in (2, 3) or not all(fields) or len(fields) != (expected or len(fields)):
            wanted = {2: "`path, class`", 3: "`path, class, coarse class`", None: "`path, class[, coarse class]`"}
            raise InputError(f"{where}: expected {wanted[expected]}, got {line!r:.200}")
        image = listed_path(path.parent, fields[0], where)
        images.append(ListedImage(where, image, fields[1], fields[2] if len(fields) == 3 else ""))
    if images and separator == " " and images[0].coarse:
        first = f"class '{escape(images[0].label)}' and coarse class '{escape(images[0].coarse)}'"
        notes.append(f"lists: {escape(path.name)}: spaces separate {first}; where they are one class, take commas")
    if not images:
        raise InputError(f"lists: expected images in {escape(path)}, but it lists none")
    check_once(images)
    return images


def _separator(first: str) -> str:
    """The separator after the path of the first line; names of files may have commas and spaces."""
    found = [each for each in SEPARATORS if each in first]
    after_image = (each for each in found if IMAGE.fullmatch(first.split(each, 1)[0].strip(' "')))
    return next(after_image, " " if not found or SPACED.fullmatch(first.strip()) else found[0])


def _fields(line: str, separator: str, where: str) -> Sequence[str]:
    if separator == " ":
        path_and_words = SPACED.fullmatch(line.strip())
        if path_and_words is None:  # a file without a suffix
            return line.strip().rsplit(maxsplit=1)
        return [path_and_words["path"], *path_and_words["words"].split()]
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise InputError(f"{where}: cannot be read: {error}") from error


def _not_listed(root: Path, images: dict[str, list[ListedImage]]) -> list[str]:
    """Warns of images that no list names, in the folders right below `root` that hold listed images."""
    paths = [image.path for listed in images.values() for image in listed]
    parts = [path.relative_to(root).parts for path in paths]
    names = " or ".join(f"{name}.txt" for name in images)
    lines = []
    for top in dict.fromkeys(each[0] for each in parts if len(each) > 1):
        below = [path for path in paths if path.is_relative_to(root / top)]
        lines += not_listed_warnings("lists", root / top, below, names)
    return lines
