"""Trainings that are killed: `python faults.py SPEC.json` runs the command line in forked children, one after another.

A child counts events: a step begins, a micro-batch is in its forward or backward pass, a picture of the evaluation is
read, part of a file is written, a file is flushed, renamed or removed. At the event that it was told, it ends by
SIGKILL: nothing of Python runs any more. A power cut takes with it whatever was not flushed by then: files lose their
second half or all, names that were not flushed with their folder may be those of before.

The modules are imported once, by this process; each child is as good as new, since it is forked before anything ran.
"""

import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import SGD, AdamW

from dual_cross_attention import cli
from dual_cross_attention.data.pictures import PictureDataset
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.runs import training
from dual_cross_attention.tasks import FGVCTask, ReIDTask
from dual_cross_attention.training import checkpoints, model_files, results, trainer

WRITING = ("write", "flush", "rename", "remove", "saved")
"""First words of the events that belong to writing."""


class Faults:
    """Ends this process at the n-th event of a kind.

    Args:
        folder: of the run.
        kind, number: the event, its number from 1; without them, events are only counted.
        power: it is a power cut, not a kill.
        seed: of what a power cut leaves.
    """

    def __init__(self, folder: Path, kind: str | None, number: int, power: bool, seed: int):
        self.folder, self.kind, self.number, self.power = folder, kind, number, power
        self.random = random.Random(seed)
        self.counted: Counter[str] = Counter()
        self.flushed = {path.stat().st_ino: self._version(path) for path in self._files()}  # by earlier children
        self.names: list[tuple[Path, Path, Path | None]] = []  # renamed since its folder was flushed: from, to, before
        self.busy = False

    def at(self, kind: str, cut: Callable[[], Any] = lambda: None) -> None:
        """An event; `cut` is what is done of it before the end."""
        if self.busy:
            return
        self.counted[kind] += 1
        if kind == self.kind and self.counted[kind] == self.number:
            self.busy = True
            cut()
            if self.power:
                self._lose_what_was_not_flushed()
            os.kill(os.getpid(), signal.SIGKILL)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and path.name != ".lock"]

    @staticmethod
    def _version(path: Path) -> tuple[int, int]:
        return path.stat().st_size, path.stat().st_mtime_ns

    def _lose_what_was_not_flushed(self) -> None:
        for before, after, replaced in reversed(self.names):
            if self.random.random() < 0.5 and after.exists():
                after.rename(before)
                if replaced:
                    replaced.rename(after)
        for path in self._files():
            if self.flushed.get(path.stat().st_ino) != self._version(path):
                os.truncate(path, self.random.choice((0, path.stat().st_size // 2)))
        self.forget_names()

    def forget_names(self) -> None:
        for path in self.folder.rglob("*.replaced-by-the-test"):
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
            self._around(task, "evaluate", "evaluate")
        self._around(DualCrossAttentionViT, "_classify", "model")
        self._around(Accelerator, "backward", "backward")
        for optimizer in (AdamW, SGD):
            self._around(optimizer, "step", "step")
        self._around(PictureDataset, "__getitem__", "picture")
        self._around(trainer.Trainer, "_finish_epoch", "epoch")
        self._around(checkpoints, "write_checkpoint", "saved checkpoint")
        self._around(results, "save_model", "saved model")
        self._around(model_files, "save_file", "write model")
        self._around(training, "complete_results", "mended")
        self._halves()

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

    def _halves(self) -> None:
        """Half of what is written to a checkpoint's file, or of a text."""
        write, write_text = checkpoints._CountedFile.write, Path.write_text

        def counted(file, data):
            self.at("write state or progress", lambda: (file.file.write(bytes(data)[: len(data) // 2]), file.flush()))
            return write(file, data)

        def text(path, content, *arguments, **options):
            self.at("write text", lambda: write_text(path, content[: len(content) // 2]))
            return write_text(path, content, *arguments, **options)

        checkpoints._CountedFile.write, Path.write_text = counted, text

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
        if self.power and after.is_file():
            self.busy = True
            replaced = after.with_name(f"{after.name}.{len(self.names)}.replaced-by-the-test")
            os.link(after, replaced)
            self.busy = False

        def renamed() -> None:
            self.names.append((before, after, replaced))

        return renamed


def attempt(spec: dict[str, Any], kind: str | None, number: int, power: bool, seed: int) -> tuple[int, dict[str, int]]:
    """A child that trains.

    Returns:
        Its exit status (negative: the signal), and the events that it counted, if it came to its end.
    """
    folder = Path(spec["folder"])
    counted = folder.with_name(f"{folder.name}.events")
    process = os.fork()
    if not process:
        log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faults = Faults(folder, kind, number, power, seed)
        faults.watch()
        status = cli.main(["train", *spec["flags"], f"--output_dir={folder}"])
        faults.busy = True
        faults.forget_names()
        counted.write_text(json.dumps(faults.counted))
        sys.stdout.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    events = json.loads(counted.read_text()) if counted.exists() else {}
    counted.unlink(missing_ok=True)
    return status, events


def survive(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Trains into new folders, each killed again and again until it ends, until there were as many kills as asked for.

    Returns:
        For each folder, its name and the events at which the training was killed.
    """
    drawn = random.Random(spec["seed"])
    status, events = attempt(spec | {"folder": f"{spec['folder']}-counted"}, None, 0, False, 0)
    if status:
        raise SystemExit(f"the training without a kill ended with {status}")
    events |= dict.fromkeys(("mended, before", "mended, after"), 1)  # only where a run goes on
    kinds = sorted(kind for kind in events if not spec["writing"] or kind.startswith(WRITING))
    queue: list[str] = []
    runs: list[dict[str, Any]] = []
    kills = 0
    while kills < spec["kills"]:
        run = f"{spec['folder']}-{len(runs)}"
        killed: list[tuple[str, int, bool]] = []
        while True:
            queue = queue or drawn.sample(kinds, len(kinds))  # every kind comes up
            kind, power = queue.pop(), drawn.random() < 0.4
            # More and more early ones: else a run that is killed often would hardly get on.
            number = drawn.randint(1, max(1, round(events[kind] / (1 + len(killed) / 2))))
            status, _ = attempt(spec | {"folder": run}, kind, number, power, drawn.randrange(2**32))
            if status != -signal.SIGKILL:
                break
            killed.append((kind, number, power))
        kills += len(killed)
        runs.append({"folder": run, "status": status, "killed": killed})
    return runs


if __name__ == "__main__":
    torch.set_num_threads(1)
    specification = json.loads(Path(sys.argv[1]).read_text())
    outcome = survive(specification)
    Path(sys.argv[1]).with_suffix(".result").write_text(json.dumps(outcome))
    shutil.rmtree(f"{specification['folder']}-counted")
