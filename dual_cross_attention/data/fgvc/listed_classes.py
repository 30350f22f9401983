"""Classes of listed images: names, order, and the coarse class of each."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dual_cross_attention.data.names import composed, composed_order
from dual_cross_attention.data.tables import read_rows
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape


class ListedImage(NamedTuple):
    """An image that a list names.

    Args:
        where: the list and line, for errors.
        path: the file.
        label: class as written: an id or a name.
        coarse: coarse class as written; empty: none.
    """

    where: str
    path: Path
    label: str
    coarse: str


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
                f"{image.where}: expected one of the {len(self.label_of):,} classes of classes.csv ({known}, ...), got "
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
    rows = read_rows(path, COLUMNS, source, notes, OPTIONAL, column_name=_without_type)
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
            for word in (fields["coarse class id"], fields["coarse class name"]):
                if coarse_name_of.setdefault(composed(word), coarse[-1]) != coarse[-1]:
                    raise InputError(f"{where}: the coarse class {escape(word)} has two names, {coarse_name_of[word]} too")
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


def _without_type(column: str) -> str:
    return column.partition("(")[0].replace("_", " ").strip()
