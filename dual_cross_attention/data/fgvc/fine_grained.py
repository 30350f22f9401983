"""What a fine-grained dataset is."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.labels import distinct
from dual_cross_attention.data.names import composed
from dual_cross_attention.data.shards.columns import IndexedNumbers
from dual_cross_attention.errors import InputError


@dataclass(frozen=True)
class FineGrainedData:
    """A dataset for classification: its class names, and labelled images to train and to test on.

    Args:
        name: the dataset.
        classes: names, by label.
        train, test: the two splits.
        warnings: what a user should know before a run.

    Raises:
        InputError: fewer than two classes, a split without images, or a label without a class.
    """

    name: str
    classes: list[str]
    train: ImageList
    test: ImageList
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self):
        if len(self.classes) < 2:
            raise InputError(f"{self.name}: expected at least two classes, found {len(self.classes)}: {self.classes}")
        for split, images in (("training", self.train), ("test", self.test)):
            if not len(images):
                raise InputError(f"{self.name}: expected images in both splits, but the {split} split is empty")
            labels = distinct(images.labels)
            if labels[0] < 0 or labels[-1] >= len(self.classes):
                raise InputError(
                    f"{self.name}: expected labels from 0 to {len(self.classes) - 1}, one for each class, but those of "
                    f"the {split} split go from {labels[0]} to {labels[-1]}"
                )

    def with_order_of(self, classes: Sequence[str]) -> "FineGrainedData":
        """The same data with labels by the order of other names, if these are its own classes in another order.

        Sorted names come in another order where they are decomposed (see `data.names`), as on a copy made by macOS.
        """
        mine, wanted = ([composed(name) for name in names] for names in (self.classes, classes))
        if mine == wanted or sorted(mine) != sorted(wanted) or len({*mine}) < len(mine):
            return self
        place_of = {name: place for place, name in enumerate(wanted)}
        places = np.array([place_of[name] for name in mine], dtype=np.int64)
        train, test = (replace(split, labels=_replaced(split.labels, places)) for split in (self.train, self.test))
        return replace(self, classes=list(classes), train=train, test=test)


def _replaced(labels: Sequence[int], new: np.ndarray) -> Sequence[int]:
    """`new[label]` for each label. Labels in the index of tar archives stay there: only their table changes."""
    if isinstance(labels, IndexedNumbers):
        return IndexedNumbers(labels.index, labels.field, new[labels.table])
    return new[np.asarray(labels, dtype=np.int64)].tolist()
