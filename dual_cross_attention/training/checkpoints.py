"""Checkpoints that survive what machines do: written beside, flushed, renamed, checked by their hashes when read.

A checkpoint is a folder: `state.pt` (tensors and plain containers; read with `weights_only=True`, so nothing in it is
executed), `progress.json` (how far the run had come), and `manifest.json`, which has the size and the SHA-256 of both
and is written last. Writing happens in a thread, while the training goes on.

    epoch_0003                  after the third epoch and its evaluation
    epoch_0003_step_00001234    later, in the fourth epoch: 1,234 steps of the optimiser since the start
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from torch.utils._pytree import tree_map_only

from dual_cross_attention.errors import InputError
from dual_cross_attention.training.run_folder import flush

KEPT = 2
"""Newest checkpoints that are kept, beside that of the best epoch."""

PROGRESS_OF_A_RUN = {
    "epoch": int,
    "step": int,
    "step_in_epoch": int,
    "batches_per_step": int,
    "best": dict,
    "log": dict,
    "unreadable": dict,
    "classes": list,
}
STATE, PROGRESS, MANIFEST = "state.pt", "progress.json", "manifest.json"


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """After `epoch` epochs; in the middle of the next one, with the steps of the optimiser since the start."""
    return f"epoch_{epoch:04d}" + (f"_step_{step:08d}" if step is not None else "")


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder that were written to the end, oldest first."""
    return sorted(path for path in folder.glob("epoch_*") if (path / MANIFEST).is_file() and "." not in path.name)


def read_progress(path: Path) -> dict[str, Any]:
    """How far the run of a checkpoint had come, as it was saved; `verify` tells whether it still is what was written.

    Raises:
        InputError: it does not say.
    """
    try:
        progress = json.loads((path / PROGRESS).read_text())
        for name, kind in PROGRESS_OF_A_RUN.items():
            if not isinstance(progress[name], kind):
                raise TypeError(f"{name} is {type(progress[name]).__name__}, expected {kind.__name__}")
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise InputError(f"cannot resume from '{path}': {PROGRESS}: {type(error).__name__}: {error}") from error
    return progress


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None if nothing is."""
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
    """What a run needs beside its progress, on CPU. Nothing in it is executed.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # what a reader raises on damaged or hostile bytes is not limited to any list of types
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InputError(f"cannot resume from '{path}': {reason}") from error


class CheckpointWriter:
    """Writes checkpoints, one at a time, while the training goes on.

    A full disk or a folder that cannot be written to does not end a run: it is told, what was there stays, and the next
    checkpoint tries again.

    Args:
        folder: where they go.
        warn: is told what could not be written.

    Attributes:
        failed: what the last attempt could not do; None if it worked.
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
        """Begin to write a checkpoint. Waits for the one before.

        Args:
            name: of its folder; see `checkpoint_name`.
            state: tensors in plain containers; copied before this returns, so training may change them.
            progress: what JSON can hold.
            best: name of a checkpoint that is kept however old it is.
            then: to be called by the same thread once the checkpoint is there, with the copied state.
        """
        self.wait()
        copied = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)
        self._writing = self._thread.submit(self._write, name, copied, progress, best, then)

    def wait(self) -> None:
        """Until what was begun is written, or has failed."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def _write(
        self, name: str, state: dict, progress: dict, best: str | None, then: Callable[[dict[str, Any]], None] | None
    ) -> None:
        target = self.folder / name
        temporary = target.with_name(f"{name}.tmp")
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed while it wrote
            write_checkpoint(temporary, state, progress)
            if target.exists():  # a run that was told to go on from an earlier one comes by again
                shutil.rmtree(target)
            os.replace(temporary, target)
            flush(self.folder)
            if then:
                then(state)
            for old in list_checkpoints(self.folder)[:-KEPT]:
                if old.name != best:
                    # Renamed first: half removed, it would look torn.
                    shutil.rmtree(old.rename(old.with_name(f"{old.name}.old")))
            self.failed = None
        except (OSError, SafetensorError) as error:
            self.failed = f"cannot write checkpoint '{target}': {' '.join(str(error).split())}"
            shutil.rmtree(temporary, ignore_errors=True)
            last = list_checkpoints(self.folder)
            self.warn(
                f"{self.failed}; the run goes on, and "
                + (f"the last good checkpoint is {last[-1]}" if last else "there is no checkpoint yet")
            )


def write_checkpoint(path: Path, state: dict[str, Any], progress: dict[str, Any]) -> None:
    """State (tensors on CPU), progress and manifest into a new folder, flushed to the disk.

    Raises:
        OSError: it cannot be written.
    """
    path.mkdir(parents=True)
    files = {}
    for name, content in ((STATE, state), (PROGRESS, json.dumps(progress).encode())):
        with (path / name).open("wb") as file:
            counted = _CountedFile(file)
            if name == STATE:
                try:
                    torch.save(content, counted)
                except RuntimeError:  # PyTorch's writer turns what the file raised into its own
                    raise (counted.error or OSError("PyTorch could not write the state")) from None
            else:
                counted.write(content)
            file.flush()
            os.fsync(file.fileno())
        files[name] = {"bytes": counted.bytes, "sha256": counted.hash.hexdigest()}
    with (path / MANIFEST).open("w") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    flush(path)


class _CountedFile:
    """A file that is written to, with what the manifest needs to know of it."""

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
