"""Fault injection: trainings with a fault at a chosen event; `python faults.py` reads one as JSON per line.

A training is a forked child of this process, which has imported the modules already. It
counts events: labels are read, a step begins, a micro-batch is in its forward or backward pass, an image is read, part
of a file is written, a file is flushed, renamed or removed. At the event that it was told, something happens:

    kill         SIGKILL: nothing of Python runs any more
    power cut    the same, and what was not flushed by then is lost: files lose their second half or all, names that
                 were not flushed with their folder may be those of before
    SIGTERM, …   the training sends itself this signal, or several, apart by `pause` seconds
    no space     the event fails as on a full disk; "no space from here" and all later ones of its kind
    no permission    to write into the folder, from then on
    die, hang    a process that reads images does, once; with `always`, its successors too; "SIGTERM and hang" sends
                 the training a signal first
"""

import errno
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch.optim import SGD, AdamW

from dual_cross_attention import cli
from dual_cross_attention.data import loaders
from dual_cross_attention.data.dataset import ImageDataset
from dual_cross_attention.inference import model_files
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks import FGVCTask, ReIDTask
from dual_cross_attention.training import run as training
from dual_cross_attention.training import trainer
from dual_cross_attention.training.checkpointing import artifacts as results
from dual_cross_attention.training.checkpointing import checkpoints

OWN = ".of-the-test"


class Faults:
    """Counts events, and has something happen at the n-th of a kind.

    Args:
        folder: of the run.
        kind, number: the event, its number from 1; "" for none.
        does: what happens, see above.
        pause: seconds after each signal.
        seed: of what a power cut leaves.
        always: with "die" and "hang".
        end: an event, and its number, at which the training is killed as well.
    """

    def __init__(
        self,
        folder: str,
        kind: str = "",
        number: int = 1,
        does: str = "kill",
        pause: float = 0.0,
        seed: int = 0,
        always: bool = False,
        end: tuple[str, int] | None = None,
    ):
        self.folder, self.kind, self.number, self.does = Path(folder), kind, number, does
        self.pause, self.always, self.end = pause, always, end and tuple(end)
        self.random = random.Random(seed)
        self.process = os.getpid()
        self.counted: Counter[str] = Counter()
        self.flushed = {path.stat().st_ino: self._version(path) for path in self._files()}  # by earlier children
        self.names: list[tuple[Path, Path, Path | None]] = []  # renamed since its folder was flushed: from, to, before
        self.numbers = count()
        self.busy = False
        self.ending: int | None = None  # the thread that ends all

    def at(self, kind: str, half: Callable[[], Any] = lambda: None) -> None:
        """An event; `half` is what is done of it before an end, or an error, in its middle."""
        while self.ending not in (None, threading.get_ident()):
            time.sleep(1)  # nothing continues while a power cut takes its part
        if self.busy:
            return
        self.counted[kind] += 1
        if (kind, self.counted[kind]) == self.end:
            os.kill(os.getpid(), signal.SIGKILL)
        later = self.does.endswith("from here") and self.counted[kind] > self.number
        if kind == self.kind and (self.counted[kind] == self.number or later):
            self._happen(half)

    def _happen(self, half: Callable[[], Any]) -> None:
        self.busy = True
        if self.does in ("kill", "power cut"):
            half()
            if self.does == "power cut":
                self.ending = threading.get_ident()
                time.sleep(0.05)  # until the other thread has come to its next event
                self._lose_what_was_not_flushed()
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.does.startswith("no space"):
            half()
            self.busy = False
            raise OSError(errno.ENOSPC, "No space left on device")
        elif self.does.endswith(("die", "hang")):
            self._end_reading()
        elif self.does == "no permission":
            for folder in (self.folder, *self.folder.rglob("*/")):
                folder.chmod(0o500)
        else:
            self.busy = False
            for name in self.does.split():
                os.kill(os.getpid(), getattr(signal, name))
                time.sleep(self.pause)
        self.busy = False

    def _end_reading(self) -> None:
        marker = self.folder / f"happened{OWN}"
        if os.getpid() == self.process or (marker.exists() and not self.always):
            return
        marker.touch()
        if self.does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does != "hang":
            os.kill(self.process, getattr(signal, self.does.split()[0]))
        time.sleep(60)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and path.name != ".lock"]

    @staticmethod
    def _version(path: Path) -> tuple[int, int]:
        return path.stat().st_size, path.stat().st_mtime_ns

    def _lose_what_was_not_flushed(self) -> None:
        for before, after, replaced in reversed(self.names):
            if self.random.random() < 0.5 and after.exists() and not before.is_dir():  # no folder takes another's place
                after.rename(before)
                if replaced:
                    replaced.rename(after)
        for path in self._files():
            if self.flushed.get(path.stat().st_ino) != self._version(path):
                os.truncate(path, self.random.choice((0, path.stat().st_size // 2)))
        self.tidy()

    def tidy(self) -> None:
        """Remove what this has put into the folder."""
        self.busy = True
        for path in self.folder.rglob(f"*{OWN}"):
            path.unlink()

    def watch(self) -> None:
        """Put the counting into the functions that matter."""
        self._around(os, "replace", "rename", self._on_rename)
        self._around(os, "rename", "rename", self._on_rename)
        self._around(os, "fsync", "flush", self._on_flush)
        for name in ("unlink", "rmdir", "remove"):
            self._around(os, name, "remove")
        for task in (FGVCTask, ReIDTask):
            self._around(task, "training_step", "forward")
            self._around(task, "compute_metrics", "metrics")
        self._around(DualCrossAttentionViT, "forward", "model")
        self._around(Accelerator, "backward", "backward")
        for optimizer in (AdamW, SGD):
            self._around(optimizer, "step", "step")
        self._around(Image, "open", "image")  # where whatever a decoder raises is caught
        self._around(trainer.Trainer, "on_epoch_end", "epoch")
        self._around(checkpoints, "write_checkpoint", "checkpoint")
        self._around(results, "save_model", "result")
        self._around(model_files, "save_file", "write model")
        self._around(training, "inspect_for_resume", "look")
        self._around(training, "complete_results", "mended")
        self._around(training, "read_setup", "labels")
        self._around(training, "build_model", "build")
        self._in_epochs()
        self._in_halves()

    def _around(self, where: Any, name: str, kind: str, also: Callable[..., Any] | None = None) -> None:
        original = getattr(where, name)

        def watched(*arguments, **options):
            self.at(f"{kind}, before")
            finish = also(*arguments) if also and not self.busy else None
            result = original(*arguments, **options)
            if finish:
                finish()
            self.at(f"{kind}, after")
            return result

        setattr(where, name, watched)

    def _in_epochs(self) -> None:
        """Images by the epoch that they are of: "image of epoch 2"; 0 is evaluation."""
        getitem = ImageDataset.__getitem__

        def counted(dataset, key):
            self.at(f"image of epoch {key.epoch}")
            return getitem(dataset, key)

        ImageDataset.__getitem__ = counted

    def _in_halves(self) -> None:
        """Half of what is written to a checkpoint's file, or of a text."""
        write, write_text = checkpoints.CountedFile.write, Path.write_text

        def counted(file, data):
            def half():
                file.file.write(bytes(data)[: len(data) // 2])
                file.file.flush()

            try:
                self.at("write state or progress", half)
            except OSError as error:
                file.error = error
                raise
            return write(file, data)

        def text(path, content, *arguments, **options):
            self.at("write text", lambda: write_text(path, content[: len(content) // 2]))
            return write_text(path, content, *arguments, **options)

        checkpoints.CountedFile.write, Path.write_text = counted, text

    def _on_flush(self, descriptor: int) -> Callable[[], None]:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))

        def flushed() -> None:
            if path.is_dir():
                self.names = [each for each in self.names if each[1].parent.resolve() != path]
            elif path.exists():
                self.flushed[path.stat().st_ino] = self._version(path)

        return flushed

    def _on_rename(self, before: Any, after: Any) -> Callable[[], None]:
        before, after = Path(before), Path(after)
        replaced = None
        if self.does == "power cut" and after.is_file():
            replaced = after.with_name(f"{after.name}.{next(self.numbers)}{OWN}")
            os.link(after, replaced)

        def renamed() -> None:
            self.names.append((before, after, replaced))

        return renamed


def attempt(
    flags: list[str], folder: str, patience: float | None = None, said: str | None = None, **fault: Any
) -> dict[str, Any]:
    """A child that trains.

    Args:
        flags: of the command line.
        folder: the run's.
        patience: see `loaders.PATIENCE`.
        said: where its output is kept, in place of beside the folder.
        fault: see `Faults`.

    Returns:
        Its exit status (negative: the signal), what it said, and the events that it counted if it came to its end.
    """
    said = {name: Path(f"{said or folder}.{name}") for name in ("out", "err", "events")}
    process = os.fork()
    if not process:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(said[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        if patience is not None:
            loaders.PATIENCE = patience
        faults = Faults(folder, **fault)
        faults.watch()
        status = cli.main(["train", *flags, f"--output_dir={folder}"])
        faults.tidy()
        said["events"].write_text(json.dumps(faults.counted))
        sys.stdout.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    events = json.loads(said["events"].read_text()) if said["events"].exists() else {}
    said["events"].unlink(missing_ok=True)
    return {"status": status, "events": events, **{name: said[name].read_text() for name in ("out", "err")}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(attempt(**json.loads(line))), flush=True)
