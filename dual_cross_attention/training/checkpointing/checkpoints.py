"""Checkpoints: written atomically (temporary folder, fsync, rename) in a thread, verified by SHA-256 when read.

A checkpoint is a folder: `state.pt` (tensors and plain containers; read with `weights_only=True`, so nothing in it is
executed), `progress.json` (`TrainProgress`), and `manifest.json`, which has the size and the SHA-256 of both and is
written last.

    epoch_0003                  after the third epoch and its evaluation
    epoch_0003_step_00001234    in the fourth epoch, after 1,234 optimizer steps since the start of the run
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from torch.utils._pytree import tree_map_only

from dual_cross_attention.atomic_io import flush, make_folder
from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version
from dual_cross_attention.errors import InputError
from dual_cross_attention.training.checkpointing.train_progress import TrainProgress

KEPT = 2
"""Number of the newest checkpoints to keep, beside that of the best epoch."""

_NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?", re.ASCII)
STATE, PROGRESS, MANIFEST = "state.pt", "progress.json", "manifest.json"


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """Name of a checkpoint after `epoch` epochs; within the next epoch, with the optimizer steps since the start."""
    return f"epoch_{epoch:04d}" + (f"_step_{step:08d}" if step is not None else "")


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first."""
    return [path for path in named_checkpoints(folder) if (path / MANIFEST).is_file()]


def named_checkpoints(folder: Path) -> list[Path]:
    """Paths with the name of a checkpoint, oldest first, complete or not."""
    found = ((_NAME.fullmatch(path.name), path) for path in folder.glob("epoch_*"))
    return [path for *_, path in sorted((*map(int, match.groups("-1")), path) for match, path in found if match)]


def read_progress(path: Path) -> TrainProgress:
    """Reads `progress.json`. `verify` detects changes since it was written.

    Raises:
        InputError: it is missing or invalid.
    """
    try:
        content = json.loads((path / PROGRESS).read_text())
        check_version(content.get("format_version"), f"'{path / PROGRESS}'")
        return TrainProgress.from_json(content)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot resume from '{path}': {PROGRESS}: {type(error).__name__}: {error}") from error


def verify(path: Path) -> str | None:
    """What differs between a checkpoint and its manifest; None if it is valid."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        for name in (STATE, PROGRESS):
            expected, file = files[name], path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size:,} bytes, expected {expected['bytes']:,}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read: {type(error).__name__}: {error}"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, Any]:
    """Reads `state.pt` to the CPU, without executing code in it.

    Raises:
        InputError: it cannot be read.
    """
    try:
        # No mmap=True: on a CPU the optimizer's state would stay in the file, and where that is truncated, or a network
        # disk fails, SIGBUS would end the process.
        return torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or hostile bytes can raise any type
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InputError(f"cannot resume from '{path}': {reason}") from error


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time, while the training continues.

    A full disk or a folder without write permission does not end a run: a warning is shown, older checkpoints stay, and
    the next checkpoint tries again.

    Args:
        folder: of the checkpoints.
        warn: called with a message about what could not be written.

    Attributes:
        failed: a message about the last attempt; None if it succeeded.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]):
        self.folder, self.warn = folder, warn
        self.failed: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None

    def save(
        self,
        name: str,
        state: dict[str, Any],
        progress: dict[str, Any],
        best: str | None = None,
        then: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Starts to write a checkpoint, after the previous one is written.

        Args:
            name: of its folder; see `checkpoint_name`.
            state: tensors in plain containers; copied before this returns, so training may change them.
            progress: serializable as JSON.
            best: name of a checkpoint to keep, whatever its age.
            then: called in the same thread after the checkpoint, with the copied state; also if the disk was too full
                for the checkpoint: a model takes a third of it.
        """
        self.wait()
        copied = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)
        self._writing = self._thread.submit(self._write, name, copied, progress, best, then)

    def wait(self) -> None:
        """Waits until the current checkpoint is written, or has failed."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def _write(
        self, name: str, state: dict, progress: dict, best: str | None, then: Callable[[dict[str, Any]], None] | None
    ) -> None:
        target = self.folder / name
        failed = []
        try:
            self._replace(target, state, progress)
            self._remove_old(best)
        except OSError as error:
            failed.append(f"cannot write checkpoint '{target}': {' '.join(str(error).split())}")
        try:
            if then:
                then(state)
        except (OSError, SafetensorError) as error:
            failed.append(f"cannot write the results of the epoch: {' '.join(str(error).split())}")
        self.failed = "; ".join(failed) or None
        if failed:
            last = list_checkpoints(self.folder)
            self.warn(
                f"{self.failed}; the run continues, and "
                + (f"the last good checkpoint is {last[-1]}" if last else "there is no checkpoint yet")
            )

    def _replace(self, target: Path, state: dict, progress: dict) -> None:
        temporary = target.with_name(f"{target.name}.tmp")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            write_checkpoint(temporary, state, progress)
            put_in_place(temporary, target)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)  # frees the space on a full disk
            raise

    def _remove_old(self, best: str | None) -> None:
        for old in list_checkpoints(self.folder)[:-KEPT]:
            if old.name != best:
                _remove(old)


def _remove(path: Path) -> None:
    """Removes a checkpoint, renamed first: half removed, it would look damaged. `.old` is for replaced ones only."""
    leftover = path.with_name(f"{path.name}.outdated")
    shutil.rmtree(leftover, ignore_errors=True)
    path.rename(leftover)
    flush(path.parent)
    shutil.rmtree(leftover)


def put_in_place(temporary: Path, target: Path) -> None:
    """Renames a temporary folder to its checkpoint name; a checkpoint of that name is kept until the rename succeeds.

    Raises:
        OSError: it cannot be renamed.
    """
    replaced = target.with_name(f"{target.name}.old")
    try:
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        os.replace(temporary, target)
    except OSError:
        with suppress(OSError):  # the next start tries again
            _put_back(replaced)
        raise
    flush(target.parent)  # otherwise a power cut could undo the rename, after the old files are gone
    shutil.rmtree(replaced, ignore_errors=True)


def _put_back(replaced: Path) -> None:
    """Renames a replaced checkpoint back, if it is complete and the one that replaces it is not there."""
    target = replaced.with_suffix("")
    if (replaced / MANIFEST).is_file() and not target.exists():
        replaced.rename(target)


def remove_leftovers(folder: Path, names: str = "epoch_*") -> None:
    """Removes what a killed run left half written or half removed; the caller must hold the run's lock.

    A checkpoint that was about to be replaced gets its name back.

    Args:
        names: pattern of the checkpoints' names.

    Raises:
        OSError: it cannot be renamed.
    """
    for path in folder.glob(f"{names}.old"):
        _put_back(path)
    for suffix in ("tmp", "old", "outdated"):
        for path in folder.glob(f"{names}.{suffix}"):
            shutil.rmtree(path, ignore_errors=True)


def write_checkpoint(path: Path, state: dict[str, Any], progress: dict[str, Any]) -> None:
    """Writes state (tensors on CPU), progress and manifest into a new folder, and flushes them to the disk.

    Raises:
        OSError: it cannot be written.
    """
    make_folder(path)
    files = {}
    for name, content in (
        (STATE, state),
        (PROGRESS, json.dumps({"format_version": FORMAT_VERSION} | progress).encode()),
    ):
        with (path / name).open("wb") as file:
            counted = CountedFile(file)
            if name == STATE:
                try:
                    torch.save(content, counted)
                except RuntimeError:  # PyTorch's writer hides the error of the file
                    raise (counted.error or OSError("PyTorch could not write the state")) from None
            else:
                counted.write(content)
            file.flush()
            os.fsync(file.fileno())
        files[name] = {"bytes": counted.bytes, "sha256": counted.hash.hexdigest()}
    with (path / MANIFEST).open("w") as file:
        json.dump({"format_version": FORMAT_VERSION, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    flush(path)


class CountedFile:
    """Counts the bytes written to a file and hashes them, for the manifest."""

    def __init__(self, file: BinaryIO):
        self.file, self.bytes, self.hash = file, 0, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.bytes += len(data)
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()
