"""Reads the headers of an untrusted tar archive.

Notable:
- block by block, with `TarInfo.frombuf`: `tarfile.open` reads extended headers of any size, and remembers all members;
- nothing is unpacked, so no name can escape a folder; absolute names and names with `..` are rejected anyway, since
  no valid dataset needs them.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dual_cross_attention.data.images import MAX_BYTES
from dual_cross_attention.data.shards.member import BLOCK, Member
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

MAX_EXTENDED = 1 << 20
"""Largest extended header (with a long name), in bytes."""
MAX_NAME = 255
"""Longest name of a member, in bytes."""
MAX_PADDING = 1 << 20
"""Largest padding after the last member, in bytes; GNU tar pads to 10,240."""
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
LONG_NAME, LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
PAX, PAX_FOR_ALL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE
KINDS = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def members(file: BinaryIO, archive: Path) -> Iterator[Member]:
    """Yields the regular files of a tar archive in order; folders are skipped.

    Args:
        file: the open archive; callers may seek in it between two members.
        archive: its path.

    Raises:
        InputError: it is compressed, truncated or no tar archive; or a member is a link, a device or a sparse file, is
            larger than an image may be, or has a name that is absolute, leads out (`..`), or is too long.
    """
    where, end, at = f"shards: {escape(archive)}", os.fstat(file.fileno()).st_size, 0
    _check_plain(file, where)
    extended: dict[str, str] = {}
    while True:
        header = _header(file, at, where)
        if header is None:
            break
        name = escape(extended.get("path", header.name))
        content, size = at + BLOCK, _size(header, extended, f"{where}: {name}")
        if content + size > end:
            raise InputError(
                f"{where}: {name}: expected {size:,} bytes from byte {content:,} on, but the archive ends at byte "
                f"{end:,}: it is truncated"
            )
        at = content + -(-size // BLOCK) * BLOCK
        if header.type in (LONG_NAME, LONG_LINK, *PAX, PAX_FOR_ALL):
            if size > MAX_EXTENDED:
                raise InputError(f"{where}: {name}: expected at most {MAX_EXTENDED:,} bytes of header, got {size:,}")
            if header.type not in (LONG_LINK, PAX_FOR_ALL):
                file.seek(content)
                raw = file.read(size)
                extended |= {"path": _text(raw.rstrip(b"\0"))} if header.type == LONG_NAME else _records(raw, where)
            continue
        member = Member(archive, content, size, _checked_name(extended.get("path", header.name), where))
        sparse = any(key.startswith("GNU.sparse") for key in extended)
        extended = {}
        if header.isdir():
            continue
        if sparse or header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            kind = "a sparse file" if sparse else KINDS.get(header.type, f"of the type {header.type!r}")
            raise InputError(f"{where}: {name}: expected regular files alone, but it is {kind}")
        if size > MAX_BYTES:
            raise InputError(f"{where}: {name}: expected at most {MAX_BYTES:,} bytes, got {size:,}")
        yield member
    if end - at > MAX_PADDING:
        raise InputError(
            f"{where}: its end is marked at byte {at:,}, but {end - at:,} bytes follow: expected one archive, not "
            "several in a row"
        )


def _check_plain(file: BinaryIO, where: str) -> None:
    file.seek(0)
    start = file.read(8)
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(
                f"{where}: expected a plain .tar, in which images can be found by their position, got one of {kind}: "
                "unpack that layer; it saves nothing on images"
            )


def _header(file: BinaryIO, at: int, where: str) -> tarfile.TarInfo | None:
    """Reads the header at a position; None at the archive's end mark."""
    file.seek(at)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise InputError(
            f"{where}: expected a tar archive, with a mark at its end, but it just ends at byte {at + len(block):,}: "
            f"it {'is truncated' if at else 'is none'}"
        )
    if not block.strip(b"\0"):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise InputError(
            f"{where}: expected the header of a tar member at byte {at:,}, got something else ({error})"
        ) from error


def _size(header: tarfile.TarInfo, extended: dict[str, str], where: str) -> int:
    """Returns the size of the content in bytes; 0 for anything but a file."""
    if header.isdir() or header.islnk() or header.issym() or header.isdev():
        return 0
    if header.type in (LONG_NAME, LONG_LINK, *PAX, PAX_FOR_ALL):
        extended = {}
    given = extended.get("size", f"{header.size}")
    if not (given.isascii() and given.isdigit() and len(given) < 19):
        raise InputError(f"{where}: expected a size in bytes, got {escape(given):.40}")
    return int(given)


def _records(raw: bytes, where: str) -> dict[str, str]:
    """A pax header: lines of "LENGTH KEY=VALUE\\n", where LENGTH counts the whole line."""
    records: dict[str, str] = {}
    while raw:
        digits, _, _ = raw[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        line = raw[len(digits) + 1 : length]
        key, equals, value = line.removesuffix(b"\n").partition(b"=")
        if not equals or length > len(raw) or not line.endswith(b"\n"):
            raise InputError(f'{where}: expected an extended header of "length key=value", got {raw[:40]!r}')
        records[_text(key)] = _text(value)
        raw = raw[length:]
    return records


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _checked_name(name: str, where: str) -> str:
    """Returns the name without a leading "./"."""
    plain = name.removeprefix("./")
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
        raise InputError(f"{where}: {escape(name)!r:.300}: expected the name of a file inside, not one that leads out")
    if len(plain.encode("utf-8", "surrogateescape")) > MAX_NAME:
        raise InputError(f"{where}: {escape(name)!r:.60}…: expected a name of at most {MAX_NAME} bytes")
    return plain
