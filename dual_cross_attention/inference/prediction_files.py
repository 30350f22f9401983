"""Rows of predictions as files: CSV, JSON, JSON Lines and Parquet."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dual_cross_attention.inference.prediction import Prediction
from dual_cross_attention.inference.row_files import Row, open_rows


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
        suffix: one of `row_files.SUFFIXES`, in lower case.
        top_k: classes of each row, which have columns of their own in CSV.

    Raises:
        OSError: the file cannot be written.
    """
    columns: dict[str, Any] = {"path": "string", "label": "string", "probability": "float64", "known": "bool"}
    convert: Callable[[Row], Row] = dict
    if suffix == ".csv":
        further = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
        columns |= dict.fromkeys(["error", *further], "string")
        convert = _with_columns_of_top
    elif suffix == ".parquet":
        columns |= {"top": _list_of_classes, "error": "string"}
        convert = _with_structs_of_top
    with open_rows(path, suffix, columns, line_end="\r\n") as writer:
        for row in rows():
            writer.write(convert(row))


def _with_columns_of_top(row: Row) -> Row:
    top = {
        f"{name}_{rank}": value
        for rank, pair in enumerate(row["top"][1:], 2)
        for name, value in zip(("label", "probability"), pair, strict=True)
    }
    return {name: value for name, value in row.items() if name != "top"} | top


def _with_structs_of_top(row: Row) -> Row:
    return row | {"top": [{"label": label, "probability": probability} for label, probability in row["top"]]}


def _list_of_classes(pyarrow: Any) -> Any:
    return pyarrow.list_(pyarrow.struct([("label", pyarrow.string()), ("probability", pyarrow.float64())]))
