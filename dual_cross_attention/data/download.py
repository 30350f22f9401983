"""Downloads archives of datasets: resumable, verified by their checksum, unpacked safely."""

import hashlib
import http.client
import logging
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from dual_cross_attention.atomic_io import flush
from dual_cross_attention.data.folders import what_is_in
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, few
from dual_cross_attention.version import __version__

TIMEOUT = 60.0
"""Seconds without a byte after which a connection has failed."""
ATTEMPTS = 5
"""Number of attempts without a new byte after which a download has failed."""
PAUSE = 1.0
"""Seconds before the second attempt; doubled for each further one."""
AT_ONCE = 1 << 20

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there, and how many there will be (None: not known)."""


@dataclass(frozen=True)
class Archive:
    """A published .tar.gz of a dataset.

    Args:
        url: where it is.
        md5: its checksum, in hexadecimal.
        size: in bytes, about, for messages.
        folder: the folder in it that is the dataset.
        contents: files and folders in that folder, of which none may be missing.
    """

    url: str
    md5: str
    size: int
    folder: str
    contents: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]


def download(archive: Archive, root: Path, progress: Progress = lambda done, total: None) -> Path:
    """Downloads, verifies and unpacks an archive, unless its folder exists; concurrent processes wait for the first.

    An interrupted download continues where it ended. The folder appears when it is complete.

    Args:
        archive: what to download.
        root: where its folder will be.
        progress: see `Progress`.

    Returns:
        The folder of the dataset.

    Raises:
        InputError: the download failed (what is there is kept), the checksum is another one (it is removed), the
            archive cannot be unpacked safely, `root` cannot be written, or the folder exists and is incomplete.
    """
    folder = root / archive.folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{archive.folder}.lock"):
            if _is_there(folder, archive):
                return folder
            path = root / f"{archive.file_name}.part"
            if not _is_complete(path, archive):
                logger.info("downloading %s (%.1f GB) to %s", archive.url, archive.size / 1e9, escape(root))
                fetch(archive.url, path, progress)
                if not _is_complete(path, archive):
                    got = _md5(path)
                    path.unlink()
                    raise InputError(
                        f"{archive.url}: expected the MD5 checksum {archive.md5}, got {got}: the file was changed or "
                        "damaged on the way and is removed; the same command downloads it again"
                    )
            logger.info("unpacking %s", escape(path.name))
            _unpack(path, archive, folder)
            path.unlink()
            return folder
    except OSError as error:
        raise InputError(f"cannot write to {escape(root)}: {error.strerror or error}") from error


class NetworkError(ConnectionError):
    """A connection failed, or what was received; `reason` is why. Errors of files have other types."""

    def __init__(self, reason: object):
        super().__init__(f"{reason}")
        self.reason = reason


def fetch(url: str, path: Path, progress: Progress = lambda done, total: None) -> None:
    """Downloads a file; bytes of `path` that are there already are not requested again (HTTP Range).

    A broken connection is retried: `ATTEMPTS` times, and as long as the file gets longer than it ever was.

    Raises:
        InputError: it cannot be downloaded; what is there is kept.
        OSError: `path` cannot be written.
    """
    failures = longest = 0
    while True:
        before = path.stat().st_size if path.exists() else 0
        try:
            _receive(url, path, before, progress)
            return
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            have = path.stat().st_size if path.exists() else 0
            failures = 1 if have > longest else failures + 1
            longest = max(longest, have)
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or failures >= ATTEMPTS:
                reason = " ".join(f"{getattr(error, 'reason', None) or error or type(error).__name__}".split())
                resumes = f"; {have:,} bytes are there, and the same command continues after them" if have else ""
                code = f"HTTP {error.code}: " if isinstance(error, urllib.error.HTTPError) else ""
                raise InputError(
                    f"the download of {url} to {escape(path.parent)} failed: {code}{escape(reason)}{resumes}"
                ) from error
            time.sleep(PAUSE * 2 ** (failures - 1))


def _receive(url: str, path: Path, have: int, progress: Progress) -> None:
    """One request; raises ConnectionError if it ends early."""
    headers = {"User-Agent": f"dual-cross-attention/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing after these bytes: the checksum tells whether they are the file
            return
        raise
    except urllib.error.URLError:
        raise
    except OSError as error:  # while the answer is awaited
        raise NetworkError(error.strerror or error) from error
    with response:
        continues = response.status == 206 and (response.headers["Content-Range"] or "").startswith(f"bytes {have}-")
        if response.status == 206 and not continues:
            raise http.client.HTTPException(f"expected bytes from {have}, got {response.headers['Content-Range']}")
        start = have if continues else 0
        length = response.headers["Content-Length"] or ""
        expected = start + int(length) if length.isdecimal() else None
        with path.open("ab" if start else "wb") as file:
            while block := _read(response):
                file.write(block)
                start += len(block)
                progress(start, expected)
    if expected is not None and start < expected:
        raise ConnectionError(f"the connection ended after {start:,} of {expected:,} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes; a failing connection (no route, TLS) is a `NetworkError`, whatever OSError it is."""
    try:
        return response.read(AT_ONCE)
    except OSError as error:
        raise NetworkError(error.strerror or error) from error


def _is_there(folder: Path, archive: Archive) -> bool:
    """Whether the dataset is there; raises InputError for another file or folder in its place."""
    if not folder.is_dir():
        if folder.exists():
            raise InputError(
                f"expected a folder or nothing at {escape(folder)}, but {what_is_in(folder)}: move it away"
            )
        return False
    if not any(folder.iterdir()):
        return False
    if missing := [name for name in archive.contents if not (folder / name).exists()]:
        raise InputError(
            f"{escape(folder)} exists but has no {few(missing)}: move it away, and the same command downloads all of it"
        )
    return True


def _is_complete(path: Path, archive: Archive) -> bool:
    return path.is_file() and path.stat().st_size > 0 and _md5(path) == archive.md5


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def _unpack(path: Path, archive: Archive, folder: Path) -> None:
    """Unpacks into a folder beside it, which is renamed at the end.

    Raises:
        InputError: a member leads out of the folder, is a device, or the archive is damaged or lacks the folder.
    """
    if not hasattr(tarfile, "data_filter"):
        raise InputError("unpacking safely needs Python 3.10.12, 3.11.4 or later: update Python")
    staging = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with tarfile.open(path) as tar:
            tar.extractall(staging, filter="data")
        if not (staging / archive.folder).is_dir():
            raise InputError(f"{escape(path)}: expected the folder {archive.folder} in the archive")
        os.replace(staging / archive.folder, folder)
        flush(folder.parent)
    except (tarfile.TarError, EOFError, zlib.error) as error:  # FilterError: a path or link out of the folder
        raise InputError(f"{escape(path)} cannot be unpacked: {escape(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
