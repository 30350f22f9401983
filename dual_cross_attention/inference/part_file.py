"""Rows of a long command, kept as they are made, so that the same command resumes after an interruption.

OUTPUT.part.jsonl has a line that says which command and model the rows are of, then a line of JSON a row. A line that a
kill cut short is dropped; its image is done again.

Rows are flushed to the operating system one by one, so a killed process loses none. They are synced to disk every
`SYNC_EVERY` seconds and when the command ends or is interrupted, so a power failure loses those of the last seconds.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from dual_cross_attention.atomic_io import atomic_write, flush
from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, short_repr

Row = dict[str, Any]
WAITED_FOR = 15.0
"""Seconds in which another process may end."""
SYNC_EVERY = 2.0
"""Seconds between two syncs to disk, at least: a sync may take some hundredths of a second."""
clock = time.monotonic


class PartFile:
    """The rows of a command up to now. Used as a context; what was appended stays when the context ends.

    Args:
        output: the file that the command writes in the end.
        settings: what decides the rows, as JSON values by name. Rows of other settings are not resumed.
        resume: "auto": continue after the rows that are there; "never": delete them.

    Attributes:
        path: OUTPUT.part.jsonl.
        done: rows that were there.

    Raises:
        InputError: rows of other settings are there, or another process writes the same output.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], resume: Literal["auto", "never"] = "auto"):
        self.output, self.settings, self.resume = output, dict(settings), resume
        self.path = output.with_name(f"{output.name}.part.jsonl")
        self.done = 0
        self._lock = FileLock(f"{self.path}.lock")
        self._is_begun = self._name_is_synced = False

    def __enter__(self) -> "PartFile":
        try:
            self.path.open("ab").close()  # where no file can be created, the lock would wait for nothing
            # The workers of a command that was killed hold its lock for some seconds, until they notice.
            self._lock.acquire(timeout=WAITED_FOR)
        except Timeout as error:
            raise InputError(
                f"another process is writing '{self.output}': wait for it, or give another --output"
            ) from error
        except OSError as error:
            raise self._not_written(error) from error
        try:
            if self.resume == "never":
                self.path.unlink(missing_ok=True)
            self._cut_last_line()
            self._file = self.path.open("a", encoding="ascii", buffering=1, newline="\n")
            self._synced_at, self._is_synced = clock(), True
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with suppress(OSError):  # on a full disk; `append` has raised
                self._file.close()
            with suppress(OSError):
                self._sync()
            if not self._is_begun and self.path.exists():  # no row: nothing to resume
                self.path.unlink()
        finally:
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def remaining(self, paths: Iterable[str]) -> Iterator[str]:
        """The paths without those whose rows are there, which must be the first ones, in the same order.

        Raises:
            InputError: they are not, or the file is damaged.
        """
        paths = iter(paths)
        for number, row in enumerate(self.rows(self.done), 1):
            path = next(paths, None)
            if row["path"] != path:
                there = "no more image" if path is None else f"'{escape(path)}'"
                raise InputError(
                    f"'{self.path}' has a row of '{escape(row['path'])}' as image {number:,}, and now {there} is "
                    "there: give the same images in the same order, or --resume never to start anew"
                )
        yield from paths

    def append(self, row: Row) -> None:
        """Adds a row, with "path" at least.

        Raises:
            InputError: it cannot be written; the rows before stay.
        """
        try:
            if not self._is_begun:
                self._file.write(json.dumps({"format_version": FORMAT_VERSION, "part_of": self.settings}) + "\n")
                self._is_begun = True
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._is_synced = False
            if clock() - self._synced_at >= SYNC_EVERY:
                self._sync()
        except OSError as error:
            raise self._not_written(error) from error

    def rows(self, number: int | None = None) -> Iterator[Row]:
        """The first so many rows, or all of them, read one by one."""
        with self.path.open(encoding="ascii", errors="replace") as file:
            file.readline()
            for line_number, line in enumerate(file, 2):
                if number is not None and line_number - 2 >= number:
                    return
                row = self._parse(line, line_number)
                if not isinstance(row.get("path"), str):
                    raise self._damaged(line_number)
                yield row

    def finish(self, write: Callable[[Path], None]) -> None:
        """Writes the output atomically, and removes the part.

        Args:
            write: called with the path of a temporary file; it reads `rows`.

        Raises:
            InputError: it cannot be written; the rows stay.
        """
        self._file.close()
        try:
            with atomic_write(self.output) as temporary:
                write(temporary)
        except OSError as error:
            raise self._not_written(error) from error
        self.path.unlink()
        self._is_synced = True  # the output, which is, has taken the place of the rows

    def _sync(self) -> None:
        """Syncs rows to disk, and with the first ones the name of the file."""
        if self._is_synced:
            return
        flush(self.path)
        if not self._name_is_synced:
            flush(self.path.parent)
            self._name_is_synced = True
        self._synced_at, self._is_synced = clock(), True

    def _cut_last_line(self) -> None:
        """Counts the rows that are there, and drops what follows the last line end."""
        self._is_begun = False
        if not self.path.exists():
            return
        end = lines = 0
        with self.path.open("rb+") as file:
            for line in file:
                if line.endswith(b"\n"):
                    end, lines = end + len(line), lines + 1
            file.truncate(end)
            file.seek(0)
            first = file.readline().decode("ascii", "replace")
        if lines:
            self._check_settings(self._parse(first, 1))
            self._is_begun, self.done = True, lines - 1

    def _check_settings(self, header: Row) -> None:
        check_version(header.get("format_version"), f"'{self.path}'")
        there = header.get("part_of")
        if not isinstance(there, dict):
            raise self._damaged(1)
        names = sorted(there.keys() | self.settings.keys())
        other = [name for name in names if there.get(name) != self.settings.get(name)]
        if other:
            differences = ", ".join(
                f"{escape(name)} {short_repr(there.get(name))} there, {short_repr(self.settings.get(name))} now"
                for name in other
            )
            raise InputError(
                f"'{self.path}' is of another model or command ({differences}): repeat that command to resume it, give "
                "another --output, or --resume never to start anew"
            )

    def _parse(self, line: str, number: int) -> Row:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise self._damaged(number)
        return row

    def _not_written(self, error: OSError) -> InputError:
        rows = f"; the rows so far are in '{self.path}', and the same command resumes" if self.path.is_file() else ""
        return InputError(f"--output: cannot write '{self.output}': {error.strerror or error}{rows}")

    def _damaged(self, number: int) -> InputError:
        return InputError(f"'{self.path}', line {number:,} is damaged: --resume never starts anew")
