"""Images that one CSV file lists: path, class and, if known, split and coarse class."""

from functools import partial
from pathlib import Path

from dual_cross_attention.data.columns import IMAGE_NAMES, LABEL_NAMES, SPLITS, TESTS, find_column
from dual_cross_attention.data.duplicates import identical_files
from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.fgvc.listed_classes import ListedClasses, classes_of_images, listed_data
from dual_cross_attention.data.fgvc.listed_images import ListedImage, check_exist, check_once
from dual_cross_attention.data.fgvc.unsplit import UnsplitImages, split_unsplit
from dual_cross_attention.data.folders import what_is_in
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.listed_paths import listed_path
from dual_cross_attention.data.tables import Titles, read_rows, strip_titles
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

LAYOUT = "a CSV file with the columns path and label and, if known, split (train, val, test) and coarse_label"
SOURCE = "images of your own, listed by a CSV file"
IMAGE, LABEL = "path", "label"


def load_csv(
    data_root: Path,
    train: bool = True,
    split: str | None = None,
    val_fraction: float | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> FineGrainedData:
    """Reads the images that a CSV file lists, in its order within each split.

    Paths are relative to the folder of the file. Separator and encoding are found, see `read_rows`. Without a column
    split, `val_fraction` splits the images by a hash of their paths, see `choose_validation`.

    Args:
        data_root: the file.
        train: False: for evaluation. Rows of split train are not used; without a split, all rows are test images unless
            `val_fraction` is set.
        split: "val" or "test": the rows to test on; None: val if it has rows, else test.
        val_fraction: of the images of each class, the share of validation images.
        image_column, label_column: the columns of the paths and classes; None: as of `find_column`.

    Raises:
        InputError: the file cannot be read, lacks a column, lists no image, one twice, or one that does not exist or is
            outside of its folder, has rows of another split, or a test image of a class without training images.
    """
    if not data_root.is_file():
        there = what_is_in(data_root) if data_root.is_dir() else "there is no such file"
        raise InputError(f"csv: data_root: expected {LAYOUT}, got {escape(data_root)}, but {there}")
    notes: list[str] = []
    images, splits = _read(data_root, image_column, label_column, notes)
    check_once(images)
    classes = classes_of_images(images)
    if not any(splits):
        return _unsplit(data_root, images, classes, notes, train, split, val_fraction)
    if val_fraction is not None:
        has_one = f"{escape(data_root.name)} has the column split"
        if train:
            raise InputError(f"--val_fraction splits a CSV file without a column split, and {has_one}: leave it out")
        notes.append(f"csv: {has_one}, so val_fraction {val_fraction:g} has no effect")
    by_split: dict[str, list[ListedImage]] = {name: [] for name in ("train", *TESTS)}
    for image, word in zip(images, splits, strict=True):
        if word.casefold() not in SPLITS:
            raise InputError(f"{image.where}: expected the split train, val or test, got {escape(word)!r:.200}")
        by_split[SPLITS[word.casefold()]].append(image)
    tests = [name for name in ((split,) if split else TESTS) if by_split[name]]
    if not tests or (train and not by_split["train"]):
        found = ", ".join(f"{len(rows):,} of {name}" for name, rows in by_split.items())
        wanted = split or "val or test"
        raise InputError(
            f"csv: {escape(data_root)}: expected rows of split {'train and ' if train else ''}{wanted}, got {found}"
        )
    if not split and len(tests) > 1:
        notes.append("csv: there are rows of split val and test: test images are those of val")
    names = {name: f"split {name}" for name in by_split}
    return listed_data("csv", by_split, classes, tests[0], train, names, [], notes)


def _read(
    path: Path, image_column: str | None, label_column: str | None, notes: list[str]
) -> tuple[list[ListedImage], list[str]]:
    """The images of a CSV file, and the field split of each."""
    wanted = {IMAGE: (image_column or IMAGE).casefold(), LABEL: (label_column or LABEL).casefold()}
    found: dict[str, str] = {}

    def rename(titles: Titles) -> Titles:
        """The usual names of columns become `IMAGE` and `LABEL`, unless others are given."""
        titles = strip_titles(titles)
        found.clear()  # of another separator that was tried
        for name, given, usual in ((IMAGE, image_column, IMAGE_NAMES), (LABEL, label_column, LABEL_NAMES)):
            if not given and (column := find_column(titles, usual)):
                found[name] = column
                titles[titles.index(column)] = name
        return titles

    columns = (*wanted.values(), "split", "coarse_label")
    rows = read_rows(path, columns[:2], "csv", notes, columns[2:], rename, any_encoding=True)
    for name, flag in ((IMAGE, "--image_column"), (LABEL, "--label_column")):
        if found.get(name, name).casefold() != name:
            notes.append(f"csv: the column {escape(found[name])} is read as {name}; {flag} chooses another")
    images = []
    for line, fields in rows:
        where = f"csv: {path}, line {line}"
        image = listed_path(path.parent, fields[wanted[IMAGE]], where)
        images.append(ListedImage(where, image, fields[wanted[LABEL]], fields["coarse_label"]))
    return images, [fields["split"] for _, fields in rows]


def _unsplit(
    path: Path,
    images: list[ListedImage],
    classes: ListedClasses,
    notes: list[str],
    train: bool,
    split: str | None,
    val_fraction: float | None,
) -> FineGrainedData:
    check_exist(images)
    files = [image.path for image in images]
    unsplit = UnsplitImages(
        "csv",
        escape(path),
        f"{escape(path)} lists {len(files):,} images of {len(classes.names):,} classes without a column split",
        ImageList(files, [classes.label(image) for image in images]),
        classes.names,
        [file.relative_to(path.parent).as_posix() for file in files],
        partial(identical_files, files),
        "to evaluate all images of a file, fill a column split with test",
        classes.coarse,
        notes=notes,
    )
    return split_unsplit(unsplit, train, split, val_fraction)
