"""Files of one row per test image: CSV, JSON, JSON Lines or Parquet."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.prediction_files import as_line, as_utf8, import_pyarrow
from dual_cross_attention.text import escape

ROWS_AT_ONCE = 8192
"""Of a row group of Parquet."""
MEASURES = {"prediction": "string", "probability": "float64", "label_probability": "float64"}
"""Columns of each branch, with their types in Parquet."""


class RowWriter(Protocol):
    """Takes one row at a time."""

    def write(self, row: dict[str, Any]) -> None: ...


class EvaluationRows:
    """Makes a row of each test image from the class probabilities of its batch.

    Columns: path, label (the true class), prediction and correct; probability (of the predicted class) and
    label_probability (of the true class); prediction_sa, probability_sa, label_probability_sa and the same with _glca;
    error. Those without a suffix are of SA and GLCA together, as in the metrics. An image that could not be read has
    its path, its label, and the reason in error; its other columns are empty.

    Args:
        writer: takes the rows.
        loader: the test batches, in order.
        labels: the true class of each image, as an index.
        classes: class names.
        unreadable: knows the reasons why images could not be read.
    """

    def __init__(
        self,
        writer: RowWriter,
        loader: Batches,
        labels: Sequence[int],
        classes: Sequence[str],
        unreadable: UnreadableImages,
    ):
        self.writer, self.dataset, self.labels, self.classes = writer, loader.dataset, labels, classes
        self.unreadable = unreadable
        self.written = 0

    def add(self, probabilities: dict[str, Tensor]) -> None:
        """Writes the rows of the next batch.

        Args:
            probabilities: (B, C) by the suffix of the columns, "" first, see `FGVCTask.probabilities`.
        """
        suffixes, size = [*probabilities], len(probabilities[""])
        labels = [int(self.labels[self.written + place]) for place in range(size)]
        on_cpu = {suffix: scores.detach().double().cpu() for suffix, scores in probabilities.items()}
        best = {suffix: scores.max(-1) for suffix, scores in on_cpu.items()}
        for place, label in enumerate(labels):
            name = self.dataset.name(self.written + place)
            row: dict[str, Any] = dict.fromkeys(columns(suffixes))
            row |= {"path": name, "label": self.classes[label], "error": self.unreadable.found.get(name)}
            if row["error"] is None:
                for suffix in suffixes:
                    predicted = int(best[suffix].indices[place])
                    row[f"prediction{suffix}"] = self.classes[predicted]
                    row[f"probability{suffix}"] = round(float(best[suffix].values[place]), 6)
                    row[f"label_probability{suffix}"] = round(float(on_cpu[suffix][place, label]), 6)
                    if not suffix:
                        row["correct"] = predicted == label
            self.writer.write(row)
        self.written += size


def columns(suffixes: Sequence[str]) -> list[str]:
    """Names of the columns; `suffixes` are those of the branches, "" first."""
    rest = [f"{measure}{suffix}" for suffix in suffixes for measure in MEASURES]
    return ["path", "label", "prediction", "correct", *(name for name in rest if name != "prediction"), "error"]


@contextmanager
def write_rows(path: Path, suffixes: Sequence[str]) -> Iterator[RowWriter]:
    """Opens a file for rows, which appears when the block ends without an error. Memory does not grow with the rows.

    Args:
        path: the file; its extension, one of `prediction_files.SUFFIXES`, decides the format.
        suffixes: see `columns`.

    Raises:
        InputError: it cannot be written.
    """
    kind = {".csv": _Csv, ".json": _Json, ".jsonl": _JsonLines, ".parquet": _Parquet}[path.suffix.lower()]
    try:
        with atomic_write(path) as temporary:
            writer = kind(temporary, suffixes)
            try:
                yield writer
            finally:
                writer.close()
    except OSError as error:
        raise InputError(f"--output: cannot write '{escape(path)}': {error.strerror or error}") from error


class _Csv:
    def __init__(self, path: Path, suffixes: Sequence[str]):
        # surrogateescape: a path whose bytes are not UTF-8 is written as these bytes
        self.file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        self.rows = csv.DictWriter(self.file, columns(suffixes), lineterminator="\n")
        self.rows.writeheader()

    def write(self, row: dict[str, Any]) -> None:
        self.rows.writerow(row | {"correct": row["correct"] if row["correct"] is None else f"{row['correct']}".lower()})

    def close(self) -> None:
        self.file.close()


class _JsonLines:
    def __init__(self, path: Path, suffixes: Sequence[str]):
        self.file = path.open("w", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(as_line(row) + "\n")

    def close(self) -> None:
        self.file.close()


class _Json(_JsonLines):
    """An object with a list of rows."""

    def __init__(self, path: Path, suffixes: Sequence[str]):
        super().__init__(path, suffixes)
        self.before = f'{{"format_version": {FORMAT_VERSION}, "images": [\n'
        self.started = False

    def write(self, row: dict[str, Any]) -> None:
        self.file.write((",\n" if self.started else self.before) + json.dumps(row))
        self.started = True

    def close(self) -> None:
        self.file.write("\n]}\n" if self.started else self.before + "]}\n")
        super().close()


class _Parquet:
    def __init__(self, path: Path, suffixes: Sequence[str]):
        pyarrow = import_pyarrow()
        types = dict.fromkeys(columns(suffixes), "string")
        types |= {f"{measure}{suffix}": kind for suffix in suffixes for measure, kind in MEASURES.items()}
        types["correct"] = "bool"
        self.schema = pyarrow.schema(
            [(name, pyarrow.type_for_alias(kind)) for name, kind in types.items()],
            metadata={"format_version": f"{FORMAT_VERSION}"},
        )
        self.table = pyarrow.Table
        self.file = pyarrow.parquet.ParquetWriter(path, self.schema)
        self.rows: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row | {"path": as_utf8(row["path"])})
        if len(self.rows) == ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self.file.write_table(self.table.from_pylist(self.rows, self.schema))
        self.rows = []

    def close(self) -> None:
        if self.rows:
            self._flush()
        self.file.close()
