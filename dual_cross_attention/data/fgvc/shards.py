"""Fine-grained recognition from tar archives."""

from pathlib import Path

import numpy as np

from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.names import composed, composed_order
from dual_cross_attention.data.shards.columns import IndexedImages, IndexedNumbers
from dual_cross_attention.data.shards.discovery import Shards, find_shards
from dual_cross_attention.data.shards.index import Index, index_of
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

LAYOUT = (
    "train-*.tar and val-*.tar (test-*.tar will do), or a pattern of the first, DIR/train-{000000..000127}.tar; "
    "members are KEY.jpg with KEY.cls (a whole number) or KEY.json (label)"
)
SOURCE = "dcal shard, or any writer of WebDataset's convention"
MAX_CLASSES = 1_000_000
BLOCK = 65_536
"""Number of consecutive images that are shuffled at a time."""


def load_shards(data_root: Path, train: bool = True, split: str | None = None) -> FineGrainedData:
    """Loads a dataset from archives. Classes are those recorded by `dcal shard`, else 0 to the largest label, or sorted
    names.

    Args:
        data_root: see `find_shards`.
        train: False: for evaluation. The training archives need not exist; classes are those of the test members.
        split: "val" or "test": the archives to test on; None: val-*.tar if they exist, else test-*.tar.

    Raises:
        InputError: archives are missing or cannot be used, or a test image has a class without training images.
    """
    tests = [split] if split else ["val", "test"]
    shards = find_shards(data_root, "fgvc", [tests], train)
    warnings = shards.warnings
    indexes = {name: index_of(archives, "fgvc", name, warnings) for name, archives in shards.splits.items()}
    classes = [composed(name) for name in shards.classes or _classes(indexes["train" if train else tests[0]], shards)]
    train_list = images_of(indexes["train"], classes) if train else None
    coarse = shards.coarse_classes and [composed(name) for name in shards.coarse_classes]
    test_list = images_of(indexes[tests[0]], classes)
    return FineGrainedData("shards", classes, train_list, test_list, warnings, coarse_classes=coarse)


def _classes(train: Index, shards: Shards) -> list[str]:
    if not train.labels or isinstance(train.labels[0], str):
        return composed_order(train.labels)
    if train.labels[-1] >= MAX_CLASSES:
        raise InputError(
            f"shards: expected classes from 0 to at most {MAX_CLASSES - 1:,} in {escape(shards.folder)}, got "
            f"{train.labels[-1]}"
        )
    return [f"{number}" for number in range(train.labels[-1] + 1)]


def images_of(index: Index, classes: list[str]) -> ImageList:
    """Returns the images of an index with their labels; raises InputError for a class that is not in `classes`."""
    places = {composed(name): place for place, name in enumerate(classes)}
    for label in index.labels:
        if not (composed(label) in places if isinstance(label, str) else label < len(classes)):
            raise InputError(
                f"shards: {escape(index.archives[0])} (or one after it) has the class {escape(label)}, which "
                f"is none of the {len(classes):,} to train on"
            )
    table = np.array(
        [places[composed(label)] if isinstance(label, str) else label for label in index.labels], dtype=np.int64
    )
    return ImageList(IndexedImages(index), IndexedNumbers(index, "label", table), BLOCK)
