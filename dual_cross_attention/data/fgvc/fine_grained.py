"""Fine-grained datasets."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.labels import distinct
from dual_cross_attention.data.names import composed
from dual_cross_attention.data.shards.columns import IndexedNumbers
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import few

UnknownClasses = Literal["refuse", "leave_out"]
"""How test images of classes that a model does not know are handled."""


@dataclass(frozen=True)
class FineGrainedData:
    """A dataset for classification: class names, and labeled training and test images.

    Args:
        name: the dataset.
        classes: names, by label; where `train` is None, of the test images only.
        train, test: the two splits; `train` is None where the dataset was read for evaluation.
        warnings: what a user should know before a run.
        notes: how the dataset was read, where that was a choice, a line each.
        coarse_classes: the coarse class of each class, by label; None: there are none.

    Raises:
        InputError: fewer than two classes to train on, a split without images, or a label without a class.
    """

    name: str
    classes: list[str]
    train: ImageList | None
    test: ImageList
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    coarse_classes: list[str] | None = None

    def __post_init__(self):
        if len(self.classes) < 2 and self.train is not None:
            raise InputError(f"{self.name}: expected at least two classes, found {len(self.classes)}: {self.classes}")
        for split, images in (("training", self.train), ("test", self.test)):
            if images is None:
                continue
            if not len(images):
                raise InputError(f"{self.name}: expected images in each split, but the {split} split is empty")
            labels = distinct(images.labels)
            if labels[0] < 0 or labels[-1] >= len(self.classes):
                raise InputError(
                    f"{self.name}: expected labels from 0 to {len(self.classes) - 1}, one for each class, but those of "
                    f"the {split} split go from {labels[0]} to {labels[-1]}"
                )

    def with_order_of(self, classes: Sequence[str]) -> "FineGrainedData":
        """Returns the same data with labels in the order of `classes`, if these are the same names in another order.

        Decomposed names (see `data.names`), as in a copy made by macOS, sort differently.
        """
        mine, wanted = ([composed(name) for name in names] for names in (self.classes, classes))
        if mine == wanted or sorted(mine) != sorted(wanted) or len({*mine}) < len(mine):
            return self
        place_of = {name: place for place, name in enumerate(wanted)}
        places = np.array([place_of[name] for name in mine], dtype=np.int64)
        train, test = (
            split and replace(split, labels=_replaced(split.labels, places)) for split in (self.train, self.test)
        )
        coarse = self.coarse_classes and [self.coarse_classes[place] for place in np.argsort(places)]
        return replace(self, classes=list(classes), train=train, test=test, coarse_classes=coarse)

    def with_classes_of_model(
        self, classes: Sequence[str], unknown_classes: UnknownClasses = "refuse"
    ) -> "FineGrainedData":
        """Returns the test images with the labels of a model; classes are matched by name, composed or decomposed.

        Images that are files are sorted by label, as after reading a dataset with these classes. A note names the
        classes of the model without test images.

        Args:
            classes: names of the model, by label.
            unknown_classes: how images of classes that the model does not know are handled: an error, or left out with
                a warning.

        Raises:
            InputError: the model does not know classes of test images, or any of them.
        """
        label_of = {composed(name): label for label, name in enumerate(classes)}
        labels = np.array([label_of.get(composed(name), -1) for name in self.classes], dtype=np.int64)
        shown = distinct(self.test.labels)
        unknown = [self.classes[label] for label in shown if labels[label] < 0]
        is_list = isinstance(self.test.labels, list)
        if unknown and (unknown_classes == "refuse" or len(unknown) == len(shown) or not is_list):
            how_many = "any" if len(unknown) == len(shown) else f"{len(unknown):,}"
            can_leave_out = is_list and len(unknown) < len(shown)
            hint = "; --unknown_classes leave_out evaluates the other classes" if can_leave_out else ""
            raise InputError(
                f"the model knows {len(classes):,} classes ({few(classes, 3)}), but not {how_many} of the "
                f"{len(shown):,} classes of the test images: {few(unknown)}{hint}"
            )
        test = replace(self.test, labels=_replaced(self.test.labels, labels))
        if is_list:
            order = np.argsort(test.labels, kind="stable")
            order = [place for place in order.tolist() if test.labels[place] >= 0]
            test = ImageList([test.images[place] for place in order], [test.labels[place] for place in order])
        warnings, notes = [*self.warnings], [*self.notes]
        if unknown:
            warnings.append(
                f"{self.name}: {len(self.test) - len(test):,} images of {len(unknown):,} classes that the model does "
                f"not know are left out: {few(unknown)}"
            )
        tested = {*distinct(test.labels).tolist()}
        if missing := [name for label, name in enumerate(classes) if label not in tested]:
            notes.append(
                f"{self.name}: {len(missing):,} of the {len(classes):,} classes of the model have no test image: "
                f"{few(missing)}"
            )
        coarse = self._coarse_classes_of(classes, notes)
        return replace(self, classes=list(classes), test=test, warnings=warnings, notes=notes, coarse_classes=coarse)

    def _coarse_classes_of(self, classes: Sequence[str], notes: list[str]) -> list[str] | None:
        """The coarse classes of a model's classes; None, with a note, if the dataset lacks that of one."""
        if not self.coarse_classes:
            return None
        known = dict(zip(map(composed, self.classes), self.coarse_classes, strict=True))
        if missing := [name for name in classes if composed(name) not in known]:
            notes.append(
                f"{self.name}: coarse classes are not reported: they are unknown for {len(missing):,} classes of the "
                f"model: {few(missing)}"
            )
            return None
        return [known[composed(name)] for name in classes]


def _replaced(labels: Sequence[int], new: np.ndarray) -> Sequence[int]:
    """Returns `new[label]` for each label. Labels of tar archives stay lazy: only their table changes; those of a table
    stay an array."""
    if isinstance(labels, IndexedNumbers):
        return IndexedNumbers(labels.index, labels.field, new[labels.table])
    replaced = new[np.asarray(labels, dtype=np.int64)]
    return replaced if isinstance(labels, np.ndarray) else replaced.tolist()
