"""Rows of a search or an identification as files: CSV, JSON, JSON Lines and Parquet."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.prediction_files import SUFFIXES, as_line, as_utf8, check_suffix, import_pyarrow
from dual_cross_attention.text import escape

__all__ = ["SUFFIXES", "as_line", "check_suffix", "write_results"]

Row = Mapping[str, Any]
Columns = Mapping[str, str]
"""Names of columns with their types, as pyarrow names them: string, bool, int64, float64."""


def write_results(output: Path, rows: Sequence[Row], columns: Columns) -> None:
    """Writes a file atomically; its extension, one of `prediction_files.SUFFIXES`, decides the format.

    Raises:
        InputError: it cannot be written.
    """
    write = {".csv": _write_csv, ".json": _write_json, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    try:
        with atomic_write(output) as temporary:
            write[output.suffix.lower()](temporary, rows, columns)
    except OSError as error:
        raise InputError(f"--output: cannot write '{escape(output)}': {error.strerror or error}") from error


def _write_csv(path: Path, rows: Sequence[Row], columns: Columns) -> None:
    # surrogateescape: a path whose bytes are not UTF-8 is written as these bytes.
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            values = (row[name] for name in columns)
            writer.writerow(f"{value}".lower() if isinstance(value, bool) else value for value in values)


def _write_json(path: Path, rows: Sequence[Row], columns: Columns) -> None:
    text = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"format_version": {FORMAT_VERSION}, "rows": [\n{text}\n]}}\n', encoding="ascii")


def _write_jsonl(path: Path, rows: Sequence[Row], columns: Columns) -> None:
    path.write_text("".join(f"{as_line(row)}\n" for row in rows), encoding="ascii")


def _write_parquet(path: Path, rows: Sequence[Row], columns: Columns) -> None:
    pyarrow = import_pyarrow()
    schema = pyarrow.schema(
        [(name, pyarrow.type_for_alias(kind)) for name, kind in columns.items()],
        metadata={"format_version": f"{FORMAT_VERSION}"},
    )
    clean = [{name: as_utf8(each) if isinstance(each, str) else each for name, each in row.items()} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(clean, schema), path)
