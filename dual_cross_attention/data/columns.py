"""Names of columns and splits in tables."""

from collections.abc import Sequence

IMAGE_NAMES = (
    "path",
    "image",
    "image_path",
    "file_path",
    "filepath",
    "file_name",
    "filename",
    "file",
    "img",
    "jpg",
    "png",
)
"""Names of columns of images or of their paths, in any case; the first that a table has is taken."""
LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "species", "target", "fine_label", "cls")
"""Names of columns of classes."""

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of splits, in lower case, by what they are."""
TESTS = ("val", "test")
"""Splits of test images; the first that exists is taken."""


def find_column(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """The column of a table that has the first of the usual names, in any case; None if it has none of them.

    Args:
        names: of the columns.
        usual: in lower case.
    """
    by_name = {name.casefold(): name for name in reversed(names)}
    return next((by_name[name] for name in usual if name in by_name), None)
