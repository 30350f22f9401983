"""What the folder of a run holds, read once, so that `resume.py` decides without any access to files."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import NamedTuple, TypeVar

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.errors import InputError
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.checkpointing.checkpoints import MANIFEST, named_checkpoints, read_progress, verify
from dual_cross_attention.training.checkpointing.train_progress import TrainProgress

T = TypeVar("T")


class TrainedOn(NamedTuple):
    """What a checkpoint says of the training data.

    Args:
        classes: class names, or training identities.
        images: number of train images.
    """

    classes: list[str]
    images: int


@dataclass(frozen=True)
class RunSnapshot:
    """The state of a run folder at one moment.

    `config`, `data`, `source` and `progress` hold the error where the file exists but cannot be read, so that it is
    raised only if the decision needs that file: read them with `require`.

    Args:
        path: the run folder as it was named, for messages.
        resolved: its absolute path without symbolic links.
        checkpoint_dir: the absolute path, without symbolic links, of the folder that holds `checkpoints`.
        config: config.yaml; None if there is none.
        data: data.json; None if there is none, as in runs of format 1.
        source: resumed_from.json: the path that --resume named and the checkpoint that it meant; None if there is none.
        checkpoints: all that have the name of a checkpoint, valid or not, oldest first.
        has_manifest: whether any of them has a manifest.
        valid: the newest of them that agrees with its manifest; None if there is none.
        damaged: those that are newer than `valid`, newest first, each with what is wrong.
        progress: of `valid`; None if there is none.
        trained_on: what the newest checkpoint that can be read says of the data, of a run without data.json.
        entries: names of all that lies beside the checkpoints.
    """

    path: Path
    resolved: Path
    checkpoint_dir: Path
    config: TrainingConfig | InputError | None = None
    data: DataFingerprint | InputError | None = None
    source: tuple[Path, Path] | InputError | None = None
    checkpoints: tuple[Path, ...] = ()
    has_manifest: bool = False
    valid: Path | None = None
    damaged: tuple[tuple[Path, str], ...] = ()
    progress: TrainProgress | InputError | None = None
    trained_on: TrainedOn | None = None
    entries: frozenset[str] = frozenset()

    @property
    def is_taken(self) -> bool:
        """Whether a run has begun in the folder: resumed_from.json is written first, then config.yaml."""
        return self.config is not None or self.source is not None


class ResumeSnapshots(NamedTuple):
    """All that a decision about resuming depends on.

    Args:
        own: the run folder that the run is to have.
        resume_from: the absolute path that --resume names; None for auto and never.
        named: the run, with the checkpoints, that `resume_from` names; None if the run in `own` began from there.
        origin: the run, with the one checkpoint, that the run in `own` began from; None if it began from none, or has
            checkpoints of its own.
    """

    own: RunSnapshot
    resume_from: Path | None = None
    named: RunSnapshot | None = None
    origin: RunSnapshot | None = None


def require(content: T | InputError) -> T:
    """The content of a file of a snapshot.

    Raises:
        InputError: the file could not be read.
    """
    if isinstance(content, InputError):
        raise content
    return content


def _or_error(read: Callable[[], T]) -> T | InputError:
    try:
        return read()
    except InputError as error:
        return error


def inspect_run(folder: RunFolder, *, verified: bool = True) -> RunSnapshot:
    """Read what a run folder holds; it need not exist.

    Args:
        folder: the folder; locked, if it is one that a run is to be trained in.
        verified: whether to look for the newest valid checkpoint, which reads and hashes the checkpoint.
    """
    checkpoints = named_checkpoints(folder.checkpoints)
    return _inspect(folder, folder.checkpoints, checkpoints, verified)


def inspect_checkpoint(path: Path) -> RunSnapshot:
    """Read a single checkpoint, and the config.yaml and data.json of the run that it lies in.

    `config` is None if no folder above the checkpoint has a config.yaml.
    """
    path = path.resolve()
    run = next((RunFolder(parent) for parent in path.parents if RunFolder(parent).config.is_file()), None)
    return _inspect(run or RunFolder(path.parent), path.parent, [path])


def _inspect(folder: RunFolder, checkpoint_dir: Path, checkpoints: list[Path], verified: bool = True) -> RunSnapshot:
    valid, damaged = None, []
    for path in reversed(checkpoints if verified else ()):
        if (reason := verify(path)) is None:
            valid = path
            break
        damaged.append((path, reason))
    data = _or_error(folder.read_data)
    return RunSnapshot(
        path=folder.path,
        resolved=folder.path.resolve(),
        checkpoint_dir=checkpoint_dir.resolve(),
        config=_or_error(folder.read_config) if folder.config.is_file() else None,
        data=data,
        source=_or_error(folder.read_source),
        checkpoints=tuple(checkpoints),
        has_manifest=any((path / MANIFEST).is_file() for path in checkpoints),
        valid=valid,
        damaged=tuple(damaged),
        progress=_or_error(lambda: read_progress(valid)) if valid else None,
        trained_on=_trained_on(checkpoints) if data is None else None,
        entries=frozenset(path.name for path in checkpoint_dir.glob("*")),
    )


def _trained_on(checkpoints: list[Path]) -> TrainedOn | None:
    for path in reversed(checkpoints):
        with suppress(InputError):
            progress = read_progress(path)
            return TrainedOn(progress.classes, progress.num_images)
    return None


def inspect_for_resume(config: TrainingConfig, folder: RunFolder) -> ResumeSnapshots:
    """Read all that `decide_resume` needs.

    What --resume names is read unless the run in the folder began from there, and what the run began from is read only
    as long as it has no checkpoint of its own: either may be deleted after that.

    Args:
        config: the settings of the command.
        folder: that the run is to have; locked, and without leftovers of a killed run.
    """
    own, resume_from = inspect_run(folder), resolve_resume_path(config)
    began = own.source if isinstance(own.source, tuple) else ()
    named = origin = None
    if resume_from is not None and resume_from not in began:
        if resume_from == own.resolved:
            named = own
        elif (resume_from / MANIFEST).is_file():
            named = inspect_checkpoint(resume_from)
        else:
            named = inspect_run(RunFolder(resume_from))
    elif began and not own.checkpoints:
        origin = inspect_checkpoint(began[1])
    return ResumeSnapshots(own, resume_from, named, origin)


def resolve_resume_path(config: TrainingConfig) -> Path | None:
    """The absolute path that --resume names, without symbolic links; None for auto and never."""
    return None if config.resume in ("auto", "never") else Path(config.resume).resolve()


def runs_to_resume(config: TrainingConfig) -> Iterator[RunSnapshot]:
    """Snapshots, without checkpoints, of the runs that a command may resume; none with --resume never."""
    if config.resume == "never":
        return
    if path := resolve_resume_path(config):
        named = next((parent for parent in (path, *path.parents) if RunFolder(parent).config.is_file()), path)
        yield inspect_run(RunFolder(named), verified=False)
    if config.output_dir:
        yield inspect_run(RunFolder(config.output_dir), verified=False)
    else:
        yield from takewhile(lambda run: run.is_taken, default_runs(config))


def default_runs(config: TrainingConfig) -> Iterator[RunSnapshot]:
    """Snapshots of runs/NAME, runs/NAME-2, …: the run folders of a command without --output_dir, without end."""
    name = f"runs/{config.task}-{config.dataset}-{config.backbone}-{config.ablation}-seed{config.seed}"
    for number in count(1):
        yield inspect_run(RunFolder(name if number == 1 else f"{name}-{number}"), verified=False)
