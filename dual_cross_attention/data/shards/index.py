"""Index of archives: position, label and camera of every image, in a memory-mapped file that is written once.

The file has a line of JSON, padded with spaces to a multiple of 64 bytes, and then a row of fixed size per image.
The JSON grows with archives, classes, identities and cameras, not with images; rows are read on access.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.data.shards.archive import MAX_NAME
from dual_cross_attention.data.shards.samples import MAX_NUMBER, Label, samples
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import MAX_LABEL_BYTES, open_regular

logger = logging.getLogger(__name__)

VERSION = 1
ALIGNED = 64
AT_ONCE = 1 << 16  # rows
DIGEST_BYTES = 16


class Index:
    """A memory-mapped index.

    Args:
        path: the file.
        folder: that contains the archives.

    Attributes:
        archives: the archives, in order.
        labels: the distinct classes or identities, sorted; all are numbers, or all are names.
        counts: number of images of each label.
        cameras: the distinct cameras, sorted, likewise; empty if the images have none.
        rows: "archive", "offset", "size", "name", and "label" and "camera", positions in those lists.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not an index, or damaged.
    """

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder = path, folder
        self.about, start = _read_about(path)
        self.archives = [folder / name for name in self.about["archives"]]
        self.labels: list[Label] = self.about["labels"]
        self.counts = np.array(self.about["counts"], dtype=np.int64)
        self.cameras: list[Label] = self.about["cameras"]
        dtype, count = row_type(self.about["name_bytes"]), self.about["pictures"]
        if os.path.getsize(path) != start + count * dtype.itemsize:
            raise ValueError("it is not as long as it says")
        mapped = np.memmap(path, dtype, mode="r", offset=start, shape=(count,)) if count else np.empty(0, dtype)
        self.rows = np.asarray(mapped)  # a plain array over the same memory: indexing is faster

    @property
    def digest(self) -> str:
        """A hash over all rows: position, name, label and camera of each image.

        It is stored in the index since format 2; for format 1 it is computed.
        """
        if "digest" not in self.about:
            digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
            for first in range(0, len(self.rows), AT_ONCE):
                digest.update(self.rows[first : first + AT_ONCE].tobytes())
            self.about["digest"] = digest.hexdigest()
        return self.about["digest"]

    def __reduce__(self) -> tuple:
        return Index, (self.path, self.folder)  # a spawned process maps the file again

    def fits(self, fingerprints: dict[str, Any]) -> bool:
        """Whether the archives still have the recorded sizes and times."""
        return self.about["archives"] == fingerprints


def index_of(archives: Sequence[Path], task: str, split: str, warnings: list[str]) -> Index:
    """Opens the index of archives; builds it if it is missing or outdated.

    One of several processes builds it, and the others wait.

    Args:
        archives: in one folder, in order.
        task: "fgvc" or "reid".
        split: for the file's name; images of "train" in re-identification are sorted by identity.
        warnings: a warning is added if the index cannot be stored.

    Raises:
        InputError: an archive does not exist, or cannot be used.
    """
    folder = archives[0].parent
    names = "\n".join([task, split, *(archive.name for archive in archives)]).encode("utf-8", "surrogateescape")
    path = folder / f"{split}-{hashlib.blake2b(names, digest_size=4).hexdigest()}.index"
    fingerprints = _fingerprints(archives)
    if found := _usable(path, folder, fingerprints):
        return found
    if path.exists():
        logger.info("%s cannot be used, or the archives have changed since: it is made again", escape(path))
    try:
        with FileLock(folder / ".dcal-index.lock"):
            if found := _usable(path, folder, fingerprints):  # another process was faster
                return found
            make_index(archives, task, split, path)
            return Index(path, folder)
    except (OSError, NotImplementedError) as error:  # the folder or file system is read-only
        reason = getattr(error, "strerror", None) or error
        warnings.append(
            f"shards: cannot keep the index of {split} in {escape(folder)} ({reason}): the archives' headers are "
            "read at every start; make the folder writable once"
        )
    own = Path(tempfile.mkdtemp(prefix="dcal-index-"))
    try:
        make_index(archives, task, split, own / path.name)
        index = Index(own / path.name, folder)
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise
    # DataLoader workers may reopen the path; it is removed when the index is garbage-collected, or at exit.
    weakref.finalize(index, _remove, own, os.getpid())
    return index


def make_index(archives: Sequence[Path], task: str, split: str, path: Path) -> None:
    """Reads all headers of the archives and writes the index; see `index_of`.

    Args:
        path: of the index, which is written atomically.

    Raises:
        OSError: it cannot be written.
        InputError: an archive cannot be used.
    """
    logger.info("reading the headers of %s of %s, once, for %s", _several(archives), escape(archives[0].parent), path)
    fingerprints = _fingerprints(archives)  # before reading: changes made meanwhile are noticed the next time
    labels, cameras = _Numbers("label" if task == "fgvc" else "identity"), _Numbers("camera")
    longest = count = 0
    with tempfile.TemporaryFile(dir=path.parent) as raw, tempfile.TemporaryFile(dir=path.parent) as sorted_numbers:
        for rows in _read_rows(archives, task, labels, cameras):
            raw.write(rows.tobytes())
            count += len(rows)
            longest = max(longest, np.char.str_len(rows["name"]).max(initial=0))
        raw.flush()
        about = {
            "dcal index": VERSION,
            "archives": fingerprints,
            "labels": labels.sorted(),
            "counts": labels.counts(),
            "cameras": cameras.sorted(),
            "name_bytes": max(1, int(longest)),
            "pictures": count,
        }
        rows = (
            np.memmap(raw, row_type(MAX_NAME), mode="r", shape=(count,)) if count else np.empty(0, row_type(MAX_NAME))
        )
        order = None
        # In re-identification, rows are sorted by identity, whatever the order in the archives.
        if count and (task, split) == ("reid", "train"):
            order = _by_label(rows, labels.places(), labels.counts(), sorted_numbers)
        write_index(path, about, _final_rows(rows, labels.places(), cameras.places(), about["name_bytes"], order))


def write_index(path: Path, about: dict[str, Any], rows: Iterable[np.ndarray]) -> None:
    """Writes the file of an index atomically.

    Args:
        about: the content of the JSON line.
        rows: blocks of rows.

    Raises:
        OSError: it cannot be written.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(_head(about | {"digest": digest.hexdigest()}))
        for some in rows:
            raw = some.tobytes()
            digest.update(raw)
            file.write(raw)
        file.seek(0)
        file.write(_head(about | {"digest": digest.hexdigest()}))


def _head(about: dict[str, Any]) -> bytes:
    head = json.dumps(about).encode()
    return head + b" " * (-(len(head) + 1) % ALIGNED) + b"\n"


class _Numbers:
    """Numbers labels in order of appearance; their positions in sorted order are known at the end."""

    def __init__(self, what: str):
        self.what = what
        self.seen: dict[Label | None, list[int]] = {}  # its number and count

    def number(self, label: Label | None, where: object) -> int:
        found = self.seen.setdefault(label, [len(self.seen), 0])
        found[1] += 1
        if not found[0] and found[1] == 1:
            self.kind = type(label)
        if type(label) is not self.kind:
            first = next(iter(self.seen))
            raise InputError(
                f"shards: {escape(where)}: expected every {self.what} as a number, or every one as a name, got "
                f"{_named(label)} after {_named(first)}"
            )
        return found[0]

    def sorted(self) -> list[Label]:
        """The distinct labels; none if all are None."""
        return sorted(label for label in self.seen if label is not None)

    def counts(self) -> list[int]:
        return [self.seen[label][1] for label in self.sorted()]

    def places(self) -> np.ndarray:
        """Position in the sorted list, by number."""
        places = np.empty(len(self.seen), dtype=np.uint32)
        for place, label in enumerate(self.sorted()):
            places[self.seen[label][0]] = place
        return places


def _named(label: Label | None) -> str:
    return "none" if label is None else f"{escape(repr(label)):.60}"


def _read_rows(archives: Sequence[Path], task: str, labels: _Numbers, cameras: _Numbers) -> Iterator[np.ndarray]:
    """Yields blocks of rows with names of maximal length; labels and cameras are numbered in order of appearance."""
    rows: list[tuple] = []
    for number, archive in enumerate(archives):
        for image, label, camera in samples(archive, task):
            name = image.name.encode("utf-8", "surrogateescape")
            rows.append(
                (
                    number,
                    image.offset,
                    image.size,
                    labels.number(label, image),
                    cameras.number(camera, image),
                    name,
                )
            )
            if len(rows) == AT_ONCE:
                yield np.array(rows, row_type(MAX_NAME))
                rows = []
    yield np.array(rows, row_type(MAX_NAME))


def _by_label(rows: np.ndarray, labels: np.ndarray, counts: Sequence[int], file: BinaryIO) -> np.ndarray:
    """Returns row numbers sorted by label, ascending within a label: a stable out-of-core sort.

    Args:
        rows: of `_read_rows`.
        labels: position of each label number in sorted order.
        counts: number of rows at each position.
        file: an empty file for the result.

    Returns:
        (rows,) int64, mapped.
    """
    free = np.cumsum([0, *counts])  # next free element of each position
    for first in range(0, len(rows), AT_ONCE):
        places = labels[rows["label"][first : first + AT_ONCE]]
        order = np.argsort(places, kind="stable")
        distinct, starts = np.unique(places[order], return_index=True)
        for place, own in zip(distinct, np.split(first + order, starts[1:]), strict=True):
            file.seek(free[place] * own.itemsize)
            file.write(own.tobytes())  # not through a mapping, where a full disk would raise SIGBUS
            free[place] += len(own)
    file.flush()
    return np.memmap(file, np.int64, mode="r", shape=(len(rows),))


def _final_rows(
    rows: np.ndarray, labels: np.ndarray, cameras: np.ndarray, name_bytes: int, order: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Yields blocks of the rows of `_read_rows`, reordered if `order` is given, with final label positions and name
    lengths."""
    for first in range(0, len(rows), AT_ONCE):
        chosen = slice(first, first + AT_ONCE)
        some = rows[chosen if order is None else order[chosen]]
        final = np.empty(len(some), row_type(name_bytes))
        for field in ("archive", "offset", "size", "name"):
            final[field] = some[field]
        final["label"], final["camera"] = labels[some["label"]], cameras[some["camera"]]
        yield final


def row_type(name_bytes: int) -> np.dtype:
    """Dtype of a row of an index with names of at most this many bytes."""
    return np.dtype(
        [
            ("archive", "<u4"),
            ("offset", "<u8"),
            ("size", "<u4"),
            ("label", "<u4"),
            ("camera", "<u4"),
            ("name", f"S{name_bytes}"),
        ]
    )


def _fingerprints(archives: Sequence[Path]) -> dict[str, Any]:
    """Size and modification time of each archive, by name.

    Raises:
        InputError: one does not exist.
    """
    found = {}
    for archive in archives:
        try:
            status = os.stat(archive)
        except (OSError, ValueError) as error:
            raise InputError(
                f"shards: expected the archive {escape(archive)}, but it cannot be found: "
                f"{getattr(error, 'strerror', None) or error}"
            ) from error
        found[archive.name] = [status.st_size, status.st_mtime_ns]
    return found


def _usable(path: Path, folder: Path, fingerprints: dict[str, Any]) -> Index | None:
    try:
        index = Index(path, folder)
    except (OSError, ValueError):
        return None
    return index if index.fits(fingerprints) else None


def _read_about(path: Path) -> tuple[dict[str, Any], int]:
    """Returns the JSON of an index and the offset of its rows; the file is untrusted, so all values are checked."""
    with open_regular(path) as file:
        line = file.readline(MAX_LABEL_BYTES)
    try:
        about = json.loads(line)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not (isinstance(about, dict) and about.get("dcal index") == VERSION and line.endswith(b"\n")):
        raise ValueError("it is no index of this version")
    archives, labels, cameras, counts = (about.get(name) for name in ("archives", "labels", "cameras", "counts"))
    numbers = [about.get("pictures"), about.get("name_bytes"), *(counts if isinstance(counts, list) else [None])]
    good = (
        isinstance(archives, dict)
        and all(name and os.path.basename(name) == name and name not in (".", "..") for name in archives)
        and all(_alike(each) for each in (labels, cameras))
        and all(type(number) is int and 0 <= number < 2**40 for number in numbers)
        and 0 < about["name_bytes"] <= MAX_NAME
        and len(counts) == len(labels)
        and sum(counts) == about["pictures"]
        and isinstance(about.get("digest", ""), str)
    )
    if not good:
        raise ValueError("it is damaged")
    return about, len(line)


def _alike(labels: object) -> bool:
    """Whether all are numbers, or all are names, ascending."""
    if not isinstance(labels, list) or not any({*map(type, labels)} <= {kind} for kind in (int, str)):
        return False
    small = all(0 <= label < MAX_NUMBER for label in labels if type(label) is int)
    return small and all(one < other for one, other in pairwise(labels))


def _several(archives: Sequence[Path]) -> str:
    return f"{len(archives):,} archives" if len(archives) > 1 else f"{escape(archives[0].name)}"


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process is not the owner
        shutil.rmtree(folder, ignore_errors=True)
