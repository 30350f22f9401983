"""What commands print and write: the log on the screen, results as JSON."""

import json
import logging
import os
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.errors import InputError
from dual_cross_attention.progress import make_console


def show_log(console: Console) -> None:
    """What the package logs, such as where weights come from, is shown as it is."""

    class Show(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            is_warning = record.levelno >= logging.WARNING
            start, style = ("warning: ", "yellow") if is_warning else ("", None)
            console.print(f"{start}{self.format(record)}", style=style, soft_wrap=True, markup=False)

    logger = logging.getLogger("dual_cross_attention")
    logger.setLevel("INFO")
    logger.handlers = [Show()]


def open_console(json: str | None = None) -> Console:
    """A console that shows the log: standard output, or standard error if the JSON goes to standard output.

    Raises:
        InputError: `json`, a file or "-", cannot be written.
    """
    check_writable("json", None if json == "-" else json)
    console = make_console(stderr=json == "-")
    show_log(console)
    return console


def check_writable(name: str, file: str | None) -> None:
    """Raises InputError if the file of flag --NAME cannot be written; does nothing if `file` is None."""
    if file is None:
        return
    if not Path(file).parent.is_dir():
        raise InputError(f"--{name}: there is no folder '{Path(file).parent}' to write '{file}' in")
    if file == "-" or Path(file).is_dir():
        raise InputError(f"--{name}: expected a file to write, got '{file}'")


def write_json(result: dict[str, Any], file: str | None) -> None:
    """To a file, or to standard output if it is "-"."""
    text = json.dumps({"format_version": FORMAT_VERSION} | result, indent=2)
    if file == "-":
        print(text)
    elif file:
        try:
            Path(file).write_text(text + "\n")
        except OSError as error:
            raise InputError(f"--json: cannot write '{file}': {error.strerror}") from error


def flush_or_discard(stream: TextIO) -> None:
    """Flushes a stream; on a full disk or a closed pipe, discards its buffer, so that Python exits without an error."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
