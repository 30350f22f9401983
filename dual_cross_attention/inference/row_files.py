"""Files of rows: CSV, JSON, JSON Lines and Parquet, written row by row in constant memory."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

Row = dict[str, Any]
SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
AT_ONCE = 4096
"""Rows of a row group of Parquet."""


class RowWriter(Protocol):
    """Writes one row at a time. Raises OSError if the file cannot be written."""

    def write(self, row: Row) -> None: ...


@contextmanager
def open_rows(path: Path, suffix: str, columns: Mapping[str, Any], line_end: str = "\n") -> Iterator[RowWriter]:
    """A writer of rows, each with the path of an image in "path".

    Args:
        path: of the file.
        suffix: the format, one of `SUFFIXES`, in lower case.
        columns: names in order, with their types in Parquet: aliases of pyarrow, or functions of pyarrow.
        line_end: of CSV.

    Raises:
        OSError: the file cannot be written.
    """
    if suffix == ".csv":
        writer: Any = _Csv(path, columns, line_end)
    elif suffix == ".parquet":
        writer = _Parquet(path, columns)
    else:
        writer = (_Json if suffix == ".json" else _JsonLines)(path)
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def write_rows(path: Path, columns: Mapping[str, Any]) -> Iterator[Callable[[Row], None]]:
    """Opens a file for rows, which appears when the block ends without an error. Memory does not grow with the rows.

    Args:
        path: the file; its extension, one of `SUFFIXES`, decides the format.
        columns: see `open_rows`.

    Raises:
        InputError: the file cannot be written. Other errors of the block pass through, an OSError too.
    """

    def write(row: Row) -> None:
        try:
            writer.write(row)
        except OSError as error:
            raise _not_written(path, error) from error

    of_block = None
    try:
        with atomic_write(path) as temporary, open_rows(temporary, path.suffix.lower(), columns) as writer:
            try:
                yield write
            except OSError as error:
                of_block = error
                raise
    except OSError as error:
        if error is of_block:
            raise
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(f"--output: cannot write '{escape(path)}': {error.strerror or error}")


def as_line(row: Row) -> str:
    """A line of JSON Lines."""
    return json.dumps({"format_version": FORMAT_VERSION, **row})


def as_utf8(path: str) -> str:
    """A path for a format that is UTF-8 only: other bytes are escaped as in messages."""
    return path if path.isascii() or not any("\ud800" <= each <= "\udfff" for each in path) else escape(path)


def check_suffix(output: Path, suffixes: tuple[str, ...]) -> None:
    """Before any work is done: raises InputError if a file of this name cannot be written."""
    if output.suffix.lower() not in suffixes:
        raise InputError(f"--output: expected a file that ends in {', '.join(suffixes)}, got '{escape(output)}'")
    if output.suffix.lower() == ".parquet":
        import_pyarrow()


def import_pyarrow() -> Any:
    """pyarrow with its Parquet module.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            "Parquet needs pyarrow: pip install 'dual-cross-attention[parquet]', or take another format for --output"
        ) from error
    return pyarrow


class _Csv:
    def __init__(self, path: Path, columns: Mapping[str, Any], line_end: str):
        # surrogateescape: a path whose bytes are not UTF-8 is written as these bytes
        self.file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        self.rows = csv.DictWriter(self.file, columns, lineterminator=line_end)
        self.rows.writeheader()

    def write(self, row: Row) -> None:
        self.rows.writerow({k: f"{v}".lower() if isinstance(v, bool) else v for k, v in row.items()})

    def close(self) -> None:
        self.file.close()


class _JsonLines:
    def __init__(self, path: Path):
        self.file = path.open("w", encoding="ascii")

    def write(self, row: Row) -> None:
        self.file.write(f"{as_line(row)}\n")

    def close(self) -> None:
        self.file.close()


class _Json(_JsonLines):
    """An object with a list of rows."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.file.write(f'{{"format_version": {FORMAT_VERSION}, "images": [')
        self.separator = "\n"

    def write(self, row: Row) -> None:
        self.file.write(f"{self.separator}{json.dumps(row)}")
        self.separator = ",\n"

    def close(self) -> None:
        try:
            self.file.write("\n]}\n")
        finally:
            super().close()


class _Parquet:
    def __init__(self, path: Path, columns: Mapping[str, Any]):
        pyarrow = import_pyarrow()
        types = {
            name: kind(pyarrow) if callable(kind) else pyarrow.type_for_alias(kind) for name, kind in columns.items()
        }
        self.schema = pyarrow.schema([*types.items()], metadata={"format_version": f"{FORMAT_VERSION}"})
        self.table = pyarrow.Table
        self.file = pyarrow.parquet.ParquetWriter(path, self.schema)
        self.rows: list[Row] = []

    def write(self, row: Row) -> None:
        self.rows.append(row | {"path": as_utf8(row["path"])})
        if len(self.rows) == AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self.file.write_table(self.table.from_pylist(self.rows, self.schema))
        self.rows = []

    def close(self) -> None:
        try:
            if self.rows:
                self._flush()
        finally:
            self.file.close()
