"""Classes of listed images: names, order, and the coarse class of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.fgvc.listed_images import ListedImage, check_exist, in_both
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.names import composed, composed_order
from dual_cross_attention.data.tables import Titles, read_rows, strip_titles
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape


@dataclass
class ListedClasses:
    """Classes by the words that lists use for them.

    Args:
        names: by label.
        label_of: label by id (or name, where there are no ids), composed.
        coarse: coarse class of each label; None: there are none.
        coarse_name_of: name of a coarse class by id or name, composed; empty: words of the lists are the names.
    """

    names: list[str]
    label_of: dict[str, int]
    coarse: list[str] | None
    coarse_name_of: dict[str, str]

    def label(self, image: ListedImage) -> int:
        """Raises InputError for a class, or a coarse class of it, that is not known."""
        label = self.label_of.get(composed(image.label))
        if label is None:
            known = ", ".join(escape(name) for name in list(self.label_of)[:5])
            raise InputError(
                f"{image.where}: expected one of the {len(self.label_of):,} known classes ({known}, ...), got "
                f"{escape(image.label)!r:.200}"
            )
        if self.coarse and image.coarse:
            there = self.coarse_name_of.get(composed(image.coarse), composed(image.coarse))
            if there != self.coarse[label]:
                raise InputError(
                    f"{image.where}: expected one coarse class for each class, but {escape(self.names[label])} is in "
                    f"{escape(self.coarse[label])} elsewhere and in {escape(there)} here"
                )
        return label


COLUMNS = ("class name",)
OPTIONAL = ("class id", "coarse class name", "coarse class id")


def read_classes(path: Path, source: str, notes: list[str]) -> ListedClasses:
    """Reads `classes.csv`: the columns class name and, if known, class id, coarse class name and coarse class id.

    A type after a column's name, "Class ID (int)", is ignored. Labels are in the order of the rows.

    Args:
        path: the file.
        source: the dataset, for errors and notes.
        notes: as of `read_rows`.

    Raises:
        InputError: it cannot be read, or names a class or an id twice.
    """
    rows = read_rows(path, COLUMNS, source, notes, OPTIONAL, rename=_without_types)
    names, label_of, coarse, coarse_name_of = [], {}, [], {}
    has_ids, has_coarse = (any(row.fields[column] for row in rows) for column in ("class id", "coarse class name"))
    for line, fields in rows:
        where = f"{source}: {path}, line {line}"
        name, key = composed(fields["class name"]), composed(fields["class id" if has_ids else "class name"])
        if not key or key in label_of or name in names:
            raise InputError(f"{where}: expected another class, with an id of its own, got {escape(name)!r} ({key!r})")
        label_of[key] = len(names)
        names.append(name)
        if has_coarse:
            if not fields["coarse class name"]:
                raise InputError(f"{where}: the field coarse class name is empty")
            coarse.append(composed(fields["coarse class name"]))
            for word in filter(None, (composed(fields["coarse class id"]), coarse[-1])):
                if (other := coarse_name_of.setdefault(word, coarse[-1])) != coarse[-1]:
                    raise InputError(f"{where}: expected one name for each coarse class, but {word} is {other} before")
    return ListedClasses(names, label_of, coarse or None, coarse_name_of)


def classes_of_images(images: Iterable[ListedImage]) -> ListedClasses:
    """Classes by the words of the lists: in numerical order where all are whole numbers, else sorted.

    Raises:
        InputError: a class is in two coarse classes, or only some images have one.
    """
    first: dict[str, ListedImage] = {}
    without = with_coarse = None
    for image in images:
        first.setdefault(composed(image.label), image)
        if image.coarse:
            with_coarse = image
        else:
            without = image
    if with_coarse and without:
        raise InputError(f"{without.where}: expected a coarse class, as {with_coarse.where} has one")
    are_numbers = all(word.isascii() and word.isdigit() for word in first)
    names = sorted(first, key=int) if are_numbers else composed_order(first)
    coarse = [composed(first[name].coarse) for name in names] if with_coarse else None
    return ListedClasses(names, {name: label for label, name in enumerate(names)}, coarse, {})


def _without_types(titles: Titles) -> Titles:
    return strip_titles([title.partition("(")[0].replace("_", " ") for title in titles])


def listed_data(
    source: str,
    images: Mapping[str, Sequence[ListedImage]],
    classes: ListedClasses,
    tested: str,
    train: bool,
    names: Mapping[str, str],
    warnings: list[str],
    notes: list[str],
) -> FineGrainedData:
    """The dataset of listed images.

    Args:
        source: name of the dataset.
        images: by split.
        classes: of all of them.
        tested: split of the test images.
        train: whether the split "train" is used.
        names: of the splits, in messages.
        warnings, notes: of the dataset.

    Raises:
        InputError: a class is not known, an image does not exist, or a test image is of a class without training
            images.
    """
    labels = {name: [classes.label(image) for image in listed] for name, listed in images.items()}
    used = ["train", tested] if train else [tested]
    if train:
        trained = {*labels["train"]}
        for image, label in zip(images[tested], labels[tested], strict=True):
            if label not in trained:
                raise InputError(
                    f"{image.where}: has the class {escape(classes.names[label])!r}, of which {names['train']} has no "
                    "image"
                )
        train_classes, test_classes = (
            {image.path: classes.names[label] for image, label in zip(images[name], labels[name], strict=True)}
            for name in used
        )
        warnings = warnings + in_both(source, train_classes, test_classes, (names["train"], names[tested]))
    for name in used:
        check_exist(images[name])
    if classes.coarse:
        count = len({*classes.coarse})
        notes = [*notes, f"{source}: {len(classes.names):,} classes in {count:,} coarse classes"]
    lists = [ImageList([image.path for image in images[name]], labels[name]) for name in used]
    return FineGrainedData(
        source, classes.names, lists[0] if train else None, lists[-1], warnings, notes, classes.coarse
    )
