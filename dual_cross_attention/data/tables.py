"""CSV files with a header: the separator found by it, columns by name, errors with their line."""

import csv
import io
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import read_text

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}

Titles = list[str]
"""Titles of the columns in a header, in order."""


class TableRow(NamedTuple):
    """A row of a table.

    Args:
        line: its line in the file, from 1.
        fields: by column, without spaces around them.
    """

    line: int
    fields: dict[str, str]


def read_rows(
    path: Path,
    columns: Sequence[str],
    source: str,
    notes: list[str],
    optional: Sequence[str] = (),
    rename: Callable[[Titles], Titles] | None = None,
    any_encoding: bool = False,
) -> list[TableRow]:
    """The rows of a CSV file, in its order; every field of `columns` is filled.

    Columns are found by their names, in any order and in capitals or not; the separator by the header. Other columns
    are ignored.

    Args:
        path: the file.
        columns: that it must have.
        source: what errors and notes start with: the dataset.
        notes: a line is added on a separator other than the comma.
        optional: columns that it may lack; then, and where they are empty, their fields are empty.
        rename: names of columns from the titles of the header; case does not matter. None: without spaces around them.
        any_encoding: False: UTF-8 only. True: see `read_text`, with a note.

    Raises:
        InputError: the file cannot be read, lacks a column or a field, or has no row.
    """
    rename = rename or strip_titles
    text = read_text(path, source, notes if any_encoding else None)
    if not text.split("\n", 1)[0].strip(f" {''.join(SEPARATORS)}"):
        found = "got a blank line: remove it" if text.strip() else "but the file is empty"
        raise InputError(
            f"{source}: {escape(path)}, line 1: expected the names of the columns, {','.join(columns)}, {found}"
        )
    separator = _separator(text.split("\n", 1)[0], [*columns, *optional], rename)
    if separator != ",":
        notes.append(f"{source}: {escape(path.name)} is read with {SEPARATORS[separator]} between its columns")
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        header = [title.casefold() for title in rename([*(reader.fieldnames or [])])]
        reader.fieldnames = header
        wrong = [name for name in columns if header.count(name) != 1]
        if wrong := wrong or [name for name in optional if header.count(name) > 1]:
            raise InputError(
                f"{source}: {path}, line 1: expected the columns {','.join(columns)}, but there "
                f"{'are several' if wrong[0] in header else 'is no'} {wrong[0]}"
            )
        for row in reader:
            where = f"{source}: {path}, line {reader.line_num}"
            if None in row:  # DictReader's key of what is beyond the header
                raise InputError(
                    f"{where}: expected {len(header)} fields, got {len(header) + len(row[None])}: a field with "
                    f"{SEPARATORS[separator]} needs quotes"
                )
            fields = {name: (row.get(name) or "").strip() for name in (*columns, *optional)}
            if empty := [name for name in columns if not fields[name]]:
                raise InputError(f"{where}: the field {empty[0]} is empty")
            rows.append(TableRow(reader.line_num, fields))
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{source}: {path} cannot be read as CSV: {reason}") from error
    if not rows:
        raise InputError(f"{source}: expected images in {path}, but it lists none")
    return rows


def strip_titles(titles: Titles) -> Titles:
    """Without spaces around them."""
    return [title.strip() for title in titles]


def _separator(header: str, columns: Collection[str], rename: Callable[[Titles], Titles]) -> str:
    """The separator that gives the most of the expected column names; the comma if none gives any."""

    def found(separator: str) -> int:
        try:
            titles = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:
            return 0
        return len({title.casefold() for title in rename(titles)} & {*columns})

    return max(SEPARATORS, key=found)  # the first of equals
