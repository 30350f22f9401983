"""Opening untrusted files: only regular ones, and only below the folder they belong to."""

import codecs
import os
import stat
from pathlib import Path
from typing import BinaryIO

from dual_cross_attention.data.names import as_on_disk
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

MAX_LABEL_BYTES = 256 * 2**20
"""Of a label file. The largest of a known dataset, VeRi-776's XML, has 6 MB."""


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A regular file (or a link to one), opened for reading bytes.

    Raises:
        OSError: there is none, or it cannot be read; also for a folder, a pipe, a socket or a device, none of which is
            waited for.
        ValueError: no file can have that name.
    """
    # Without O_NONBLOCK, opening a pipe would wait for a process that writes to it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
            raise OSError(0, f"expected a regular file, but it is {kind}", os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: Path, dataset: str, notes: list[str] | None = None) -> str:
    """The text of a label file in UTF-8, with or without a byte order mark; line ends of any system become `\\n`.

    Args:
        path: the file.
        dataset: its name, for errors and notes.
        notes: if given, UTF-16 with a byte order mark is read too, and what is not UTF-8 is read as Windows-1252, each
            with a note.

    Raises:
        FileNotFoundError: there is none; what was expected is for the caller to say.
        InputError: it cannot be read, or is no text.
    """
    raw = read_label_bytes(path, dataset)
    try:
        text = (None if notes is None else _other_text(raw, path, dataset, notes)) or raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{dataset}: {escape(path)}, line {line}: cannot be read as text: expected UTF-8, got the byte "
            f"0x{raw[error.start]:02x}"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{dataset}: {escape(path)}, line {line}: expected text, got a NUL byte")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _other_text(raw: bytes, path: Path, dataset: str, notes: list[str]) -> str | None:
    """Text in UTF-16 or Windows-1252, with a note; None if it is neither or UTF-8."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text, encoding = raw.decode("utf-16", "replace"), "UTF-16"
    else:
        try:
            raw.decode("utf-8")
            return None
        except UnicodeDecodeError:
            try:
                text, encoding = raw.decode("cp1252"), "Windows-1252, not being UTF-8"
            except UnicodeDecodeError:
                return None
    odd = next((line for line in text.splitlines() if not line.isascii()), "")
    shown = f": {escape(odd.strip()):.80}" if odd else ""
    notes.append(f"{dataset}: {escape(path.name)} is read as {encoding}{shown}")
    return text


def read_label_bytes(path: Path, dataset: str) -> bytes:
    """What a label file holds; errors as in `read_text`."""
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_LABEL_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{dataset}: {escape(path)} cannot be read as text: {reason}") from error
    if len(raw) > MAX_LABEL_BYTES:
        raise InputError(
            f"{dataset}: {escape(path)}: expected a label file of at most {MAX_LABEL_BYTES >> 20} MiB, got a larger one"
        )
    return raw


def inside(folder: Path, name: str, where: str) -> Path:
    """The path `name`, relative to `folder` or absolute, which must not lead out of `folder`.

    It is decided by the names alone: a link in the folder may point to anywhere, since creating it takes write access
    to the folder. An absolute name may spell the folder with links or without. What is composed in `name` may be
    decomposed on disk (see `data.names`), and the other way round.

    Args:
        where: the file and line that have the name, for the error.

    Returns:
        The path below `folder`, which is spelled as it is given.

    Raises:
        InputError: it leads out of the folder, or is no path.
    """
    path = Path(name)
    if path.is_absolute():
        for spelled in (os.path.abspath, os.path.realpath):
            if path.is_relative_to(home := spelled(folder)):
                path = path.relative_to(home)
                break
    if ".." in path.parts or path.is_absolute() or not path.parts:
        raise InputError(f"{where}: expected the path of a file inside of {escape(folder)}, got {escape(name)!r}")
    return as_on_disk(folder, path)
