"""Rows of predictions as files: CSV, JSON, JSON Lines and Parquet, written in constant memory."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.prediction import Prediction
from dual_cross_attention.text import escape

Row = dict[str, Any]
SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
AT_ONCE = 4096
"""Rows of a row group of Parquet."""


def check_suffix(output: Path, suffixes: Iterable[str]) -> None:
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


def as_row(prediction: Prediction) -> Row:
    """A prediction as JSON values."""
    return {
        "path": prediction.path,
        "label": prediction.label,
        "probability": prediction.probability,
        "known": prediction.known,
        "top": [list(pair) for pair in prediction.top],
        "error": prediction.error,
    }


def write_predictions(path: Path, rows: Callable[[], Iterator[Row]], suffix: str, top_k: int) -> None:
    """Writes rows of `as_row` in the format of a suffix.

    Args:
        path: of the file.
        rows: gives the rows, from the first one at each call.
        suffix: one of `SUFFIXES`, in lower case.
        top_k: classes of each row, which have columns of their own in CSV.

    Raises:
        OSError: the file cannot be written.
    """
    _WRITERS[suffix](path, rows(), top_k)


def _write_csv(path: Path, rows: Iterator[Row], top_k: int) -> None:
    # surrogateescape: a path whose bytes are not UTF-8 comes out as these bytes.
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        further = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
        writer.writerow(["path", "label", "probability", "known", "error", *further])
        for row in rows:
            known = "" if row["known"] is None else str(row["known"]).lower()
            first = [row["path"], row["label"], row["probability"], known, row["error"]]
            writer.writerow([*first, *(value for pair in row["top"][1:] for value in pair)])


def _write_json(path: Path, rows: Iterator[Row], top_k: int) -> None:
    with path.open("w", encoding="ascii") as file:
        file.write(f'{{"format_version": {FORMAT_VERSION}, "images": [')
        for number, row in enumerate(rows):
            file.write(f"{',' if number else ''}\n{json.dumps(row)}")
        file.write("\n]}\n")


def as_line(row: Row) -> str:
    """A line of JSON Lines."""
    return json.dumps({"format_version": FORMAT_VERSION, **row})


def _write_jsonl(path: Path, rows: Iterator[Row], top_k: int) -> None:
    with path.open("w", encoding="ascii") as file:
        file.writelines(f"{as_line(row)}\n" for row in rows)


def _write_parquet(path: Path, rows: Iterator[Row], top_k: int) -> None:
    pyarrow = import_pyarrow()
    class_ = pyarrow.struct([("label", pyarrow.string()), ("probability", pyarrow.float64())])
    schema = pyarrow.schema(
        [
            ("path", pyarrow.string()),
            ("label", pyarrow.string()),
            ("probability", pyarrow.float64()),
            ("known", pyarrow.bool_()),
            ("top", pyarrow.list_(class_)),
            ("error", pyarrow.string()),
        ],
        metadata={"format_version": f"{FORMAT_VERSION}"},
    )
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, AT_ONCE)):
            for row in group:
                row["path"] = as_utf8(row["path"])
                row["top"] = [{"label": label, "probability": probability} for label, probability in row["top"]]
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def as_utf8(path: str) -> str:
    """A path for a format that is UTF-8 only: other bytes are escaped as in messages."""
    return path if path.isascii() or not any("\ud800" <= each <= "\udfff" for each in path) else escape(path)


_WRITERS: dict[str, Callable[[Path, Iterator[Row], int], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
