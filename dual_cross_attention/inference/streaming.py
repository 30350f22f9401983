"""Writes results of a stream of images into a file: resumable, with a progress bar, in constant memory."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from dual_cross_attention.inference.part_file import PartFile, Row
from dual_cross_attention.inference.prediction import Embedding, Prediction
from dual_cross_attention.progress import track


class Written(NamedTuple):
    """Number of rows in the output, of rows from earlier attempts, and of unreadable images."""

    rows: int
    resumed: int
    unreadable: int


def write_stream(
    part: PartFile,
    paths: Iterable[str],
    total: int | None,
    compute: Callable[[Iterator[str]], Iterator[Prediction] | Iterator[Embedding]],
    as_row: Callable[[Any], Row],
    write: Callable[[Path, Callable[[], Iterator[Row]]], None],
    title: str,
    console: Console,
) -> Written:
    """Computes the rows that `part` lacks, then writes the output.

    Args:
        part: the rows up to now, not opened yet.
        paths: all images, in the order of an earlier attempt.
        total: how many; None where that is not known.
        compute: from paths to their results, in order.
        as_row: from a result to JSON values.
        write: called with the path of a temporary file, and with a function that gives all rows from the first one on.
        title: of the progress bar.
        console: where it is shown.

    Raises:
        InputError: as `PartFile` and `compute` do, or the output cannot be written.
    """
    rows = unreadable = 0

    def all_rows() -> Iterator[Row]:
        nonlocal rows, unreadable
        rows = unreadable = 0
        for row in part.rows():
            rows, unreadable = rows + 1, unreadable + (row["error"] is not None)
            yield row

    with part:
        if part.done:
            console.print(f"'{part.path}' has {part.done:,} rows: the others are computed (--resume never: all)")
        left = None if total is None else max(0, total - part.done)
        for result in track(compute(part.remaining(paths)), title, left, console):
            part.append(as_row(result))
        part.finish(lambda temporary: write(temporary, all_rows))
    return Written(rows, part.done, unreadable)
