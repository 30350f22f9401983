"""Tables of images that the library `datasets` reads: from the Hugging Face Hub, Parquet, Arrow or an image folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dual_cross_attention.data.columns import IMAGE_NAMES, LABEL_NAMES, SPLITS, TESTS, find_column
from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.fgvc.hf_files import Opened, open_tables
from dual_cross_attention.data.fgvc.unsplit import UnsplitImages, split_unsplit
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.names import composed, composed_order
from dual_cross_attention.data.row_images import RowImages
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, few, short_repr

LAYOUT = (
    "Parquet or Arrow files, a folder of datasets.save_to_disk, or train/CLASS/*.jpg; or --dataset hf:ORG/NAME of the "
    "Hugging Face Hub"
)
SOURCE = "the Hugging Face Hub, or any writer of Parquet"


def load_hf(
    data_root: Path | str,
    train: bool = True,
    split: str | None = None,
    val_fraction: float | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> FineGrainedData:
    """Reads tables of images through the library `datasets`. They are memory-mapped: images stay on disk, and of the
    labels one array of numbers is in memory.

    Args:
        data_root: hf:ORG/NAME or hf:ORG/NAME:SUBSET, a folder, or a Parquet or Arrow file; see `open_tables`.
        train: False: for evaluation.
        split: "val" or "test": the split to test on; None: val if there is one, else test.
        val_fraction: where there is the split train only, the share of validation images; they are chosen by a hash of
            their row numbers.
        image_column, label_column: the columns of images and classes; None: those of `datasets`' types Image and
            ClassLabel, else as of `find_column`.

    Raises:
        InputError: `datasets` is not installed or cannot read it, a split or column is missing, or a row has no class.
    """
    opened = open_tables(data_root)
    notes, found = [*opened.notes], dict[str, str]()
    for name in opened.tables:
        kind = SPLITS.get(name.casefold())
        if kind is None or kind in found:
            notes.append(f"hf: the split {escape(name)} is not read")
        else:
            found[kind] = name
    has_test = any(name in found for name in TESTS)
    tests = [name for name in ((split,) if split else TESTS) if name in found]
    if (train and "train" not in found) or (has_test and not tests) or not found:
        wanted = f"the splits train and {split or 'val or test'}" if train else f"the split {split or 'val or test'}"
        raise InputError(f"hf: {opened.name}: expected {wanted}, got {few([*opened.tables]) or 'none'}")
    columns = _columns(opened, image_column, label_column, notes)
    codes, classes = _labels(opened, found, columns[1])
    lists = {kind: ImageList(_images(opened, found[kind], columns[0]), codes[kind]) for kind in found}
    if not has_test:
        unsplit = UnsplitImages(
            "hf",
            opened.name,
            f"{opened.name} has {len(lists['train']):,} images of {len(classes):,} classes in one split, train",
            lists["train"],
            classes,
            [f"{row}" for row in range(len(lists["train"]))] if val_fraction is not None else [],
            lambda: [],
            "to evaluate all of them, give them the split test",
            notes=notes,
            kind="row numbers (copies of an image may be on both sides: dcal check-data finds them)",
        )
        return split_unsplit(unsplit, train, split, val_fraction)
    if val_fraction is not None:
        has_one = f"{opened.name} has the split {found[tests[0]]}"
        if train:
            raise InputError(f"--val_fraction splits a table with one split, and {has_one}: leave it out")
        notes.append(f"hf: {has_one}, so val_fraction {val_fraction:g} has no effect")
    if not split and len(tests) > 1:
        notes.append(f"hf: there are {found['val']} and {found['test']}: test images are those of {found['val']}")
    test = lists[tests[0]]
    if train:
        unknown = np.flatnonzero(~np.isin(codes[tests[0]], np.unique(codes["train"])))
        if len(unknown):
            row = int(unknown[0])
            raise InputError(
                f"hf: {opened.name}: {found[tests[0]]}[{row}] has the class {escape(classes[test.labels[row]])!r}, of "
                f"which {found['train']} has no image"
            )
    return FineGrainedData("hf", classes, lists["train"] if train else None, test, [], notes)


def _columns(opened: Opened, image: str | None, label: str | None, notes: list[str]) -> tuple[str, str]:
    """The columns of images and classes, which all splits have."""
    features = next(iter(opened.tables.values())).features
    found = []
    for what, flag, given, kind, usual in (
        ("images", "--image_column", image, "Image", IMAGE_NAMES),
        ("classes", "--label_column", label, "ClassLabel", LABEL_NAMES),
    ):
        typed = [name for name, feature in features.items() if type(feature).__name__ == kind]
        column = given or (typed[0] if len(typed) == 1 else find_column(typed or [*features], usual))
        missing = [name for name, table in opened.tables.items() if column not in table.features]
        if column is None or missing:
            wanted = f"a column {escape(column)}" if column else f"a column of {what} ({kind}, or named {usual[0]})"
            raise InputError(
                f"hf: {opened.name}: expected {wanted}, got {few([*features])}: {flag} NAME says which it is"
            )
        found.append(column)
        notes += [] if given else [f"hf: {what} are read from the column {escape(column)}; {flag} chooses another"]
    return found[0], found[1]


def _images(opened: Opened, split: str, column: str) -> RowImages:
    table = opened.tables[split]
    if type(table.features[column]).__name__ == "Image":
        table = table.cast_column(column, type(table.features[column])(decode=False))
    return RowImages(
        table.select_columns([column]), column, f"{opened.name}/{escape(split)}", opened.folders, opened.are_files
    )


def _labels(opened: Opened, found: Mapping[str, str], column: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Class numbers (images,) int64 by split, and class names.

    Raises:
        InputError: a row has no class, or values are neither whole numbers nor text.
    """
    encoded = {kind: _encoded(opened, name, column) for kind, name in found.items()}
    feature = opened.tables[found["train"] if "train" in found else next(iter(found.values()))].features[column]
    place_of: dict[Any, int]
    if type(feature).__name__ == "ClassLabel":
        classes = [composed(name) for name in feature.names]
        place_of = {key: place for place, name in enumerate(classes) for key in (place, name)}
        if len({*classes}) < len(classes):
            raise InputError(f"hf: {opened.name}: expected different names of classes in {escape(column)}")
        # Each split numbers its classes itself.
        for kind, (codes, words) in encoded.items():
            names = getattr(opened.tables[found[kind]].features[column], "names", None) or classes
            encoded[kind] = codes, [composed(names[word]) if word in range(len(names)) else word for word in words]
    else:
        values = {value for _, words in encoded.values() for value in words}
        if all(isinstance(value, int) for value in values):
            ordered = sorted(values)
            classes, place_of = [f"{value}" for value in ordered], {value: n for n, value in enumerate(ordered)}
        else:
            classes = composed_order(f"{value}" for value in values)
            places = {name: place for place, name in enumerate(classes)}
            place_of = {value: places[composed(f"{value}")] for value in values}
    labels = {}
    for kind, (codes, words) in encoded.items():
        wrong = [number for number, word in enumerate(words) if word not in place_of]
        if wrong:
            row = int(np.flatnonzero(codes == wrong[0])[0])
            raise InputError(
                f"hf: {opened.name}: {found[kind]}[{row}]: expected a class from 0 to {len(classes) - 1}, got "
                f"{short_repr(words[wrong[0]])}"
            )
        labels[kind] = np.array([place_of[word] for word in words], dtype=np.int64)[codes]
    return labels, classes


def _encoded(opened: Opened, split: str, column: str) -> tuple[np.ndarray, list[Any]]:
    """Classes of a split: (images,) positions in the list of distinct values, and that list."""
    where = f"hf: {opened.name}: {escape(split)}"
    values = opened.tables[split].select_columns([column]).with_format("arrow")[:].column(0).combine_chunks()
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{where}[{row}]: expected a class in the column {escape(column)}, got none")
    kind = f"{values.type}"
    if not kind.startswith(("int", "uint", "string", "large_string", "dictionary")):
        raise InputError(
            f"{where}: expected whole numbers or text in the column {escape(column)}, got {escape(kind):.80}"
        )
    encoded = values if kind.startswith("dictionary") else values.dictionary_encode()
    words = encoded.dictionary.to_pylist()
    if not all(isinstance(word, int | str) and word != "" for word in words):
        raise InputError(f"{where}: expected whole numbers or text in the column {escape(column)}, got {few(words, 3)}")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), words
