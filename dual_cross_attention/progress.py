"""What a run shows while it works: lines, and a progress bar where there is a terminal."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ANY_WIDTH = 10_000


class PatientConsole(Console):
    """A stream whose write errors are ignored: a log on a full disk or a closed pipe must not end a run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True

    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(OSError):
            super().print(*objects, **options)


def make_console(stderr: bool = False, patient: bool = False) -> Console:
    """A console that prints text as it is: paths may hold [brackets] and :colons:, which rich would take for its own.

    Where there is no terminal, nothing is wrapped: one message is one line of the log. In distributed
    training, only rank 0 prints.

    Args:
        stderr: where it prints.
        patient: see `PatientConsole`.
    """
    quiet = os.environ.get("RANK", "0") != "0"
    console = (PatientConsole if patient else Console)(
        stderr=stderr, markup=False, emoji=False, highlight=False, quiet=quiet
    )
    if not console.is_terminal:
        console.width = ANY_WIDTH
    return console


class ProgressBar:
    """A bar with a line of status; where there is no terminal, it shows nothing.

    As a context manager, it yields `update(status=, advance=1)`, which advances the bar and sets the status.
    """

    def __init__(self, title: str, total: int | None, console: Console):
        self.progress = Progress(
            TextColumn(title),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task(title, total=total, status="")

    def __enter__(self) -> Callable[..., None]:
        self.progress.start()
        return lambda status="", advance=1: self.progress.update(self.bar, advance=advance, status=status)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def track(batches: Iterable, title: str, total: int | None, console: Console) -> Iterator:
    """The batches, with a bar that counts them; `total` None: their number is not known."""
    with ProgressBar(title, total, console) as advance:
        for batch in batches:
            yield batch
            advance()
