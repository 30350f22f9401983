"""Which folder a run has, and where it resumes from: only with the settings and on the data that it began with."""

from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.parse import as_of
from dual_cross_attention.data.fingerprint import DataFingerprint, digest_names
from dual_cross_attention.errors import InputError
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.checkpointing.checkpoints import MANIFEST, named_checkpoints, read_progress, verify

# A run may continue with these changed: they say where and how it runs, not what it computes.
FREE_TO_CHANGE = {
    "data_root",
    "download",
    "device",
    "compile",
    "parallel",
    "cache",
    "num_workers",
    "eval_batch_size",
    "checkpoint_minutes",
    "max_bad_images",
    "use_gradient_checkpointing",
    "output_dir",
    "resume",
}

# What a command leaves open with these values is decided at the start of a run, and the run keeps it.
LEFT_OPEN = {"precision": ("auto",), "mean": ("auto", None), "std": ("auto", None)}


class RunData(NamedTuple):
    """The data of a run that is about to begin or to resume.

    Args:
        fingerprint: to be compared with that of the run.
        classes: class names, or training identities, for runs that have not recorded a fingerprint.
    """

    fingerprint: DataFingerprint
    classes: list[str]


def choose_folder(config: TrainingConfig, data: RunData, say: Callable[[str], None]) -> RunFolder:
    """`output_dir`; unset: the first of runs/NAME, runs/NAME-2, … that holds this very run, or nothing yet.

    Args:
        data: which the run is to be on.
        say: is told of a run of the same settings on other data.
    """
    if config.output_dir:
        return RunFolder(config.output_dir)
    name = f"runs/{config.task}-{config.dataset}-{config.backbone}-{config.ablation}-seed{config.seed}"
    for number in count(1):
        folder = RunFolder(name if number == 1 else f"{name}-{number}")
        if not _is_taken(folder):
            return folder
        if not _is_this_run(config, folder):
            continue
        if not (other := _other_data(folder, data)):
            return folder
        say(f"'{folder.path}' holds this run on other data, so it is left alone: {'; '.join(other)}")


def _is_taken(folder: RunFolder) -> bool:
    """Whether a run has begun in it: what it begins from is written first, and its settings then."""
    return folder.config.is_file() or folder.source.is_file()


def _is_this_run(config: TrainingConfig, folder: RunFolder) -> bool:
    if config.resume == "never" or (folder.config.is_file() and _other_settings(config, folder)):
        return False
    return folder.config.is_file() if config.resume == "auto" else _began_from(folder, Path(config.resume))


def _began_from(folder: RunFolder, path: Path) -> bool:
    """Whether the run in it began from what a path of --resume names, or named at that time."""
    return path.resolve() in (folder.read_source() or ())


def find_checkpoint(
    config: TrainingConfig, folder: RunFolder, data: RunData, warn: Callable[[str], None]
) -> Path | None:
    """Where to resume from, by `config.resume` and what the folder holds; None to start.

    A run that began from another one's checkpoint resumes from its own ones, and from that one until it has any; it is
    the same run if the same path is given again. So it is where a run went back to a checkpoint of its own.

    Args:
        data: which the run is to be on.
        warn: is told of checkpoints that are damaged, or later than the one that was asked for, and set aside, and of
            runs that have not recorded their data.

    Raises:
        InputError: the folder holds another run, or one on other data; `resume` names nothing to resume from; no
            checkpoint is whole; or there is none yet, and the one that the run began from is not whole any more.
        OSError: a checkpoint cannot be set aside.
    """
    own, path = named_checkpoints(folder.checkpoints), Path(config.resume)
    if own and not folder.config.is_file():
        raise InputError(
            f"'{folder.path}' holds checkpoints, but no {folder.config.name} to say what they are of: put it back, or "
            "take another --output_dir"
        )
    if config.resume not in ("auto", "never") and not _began_from(folder, path):
        source, found = _named_by(path)
        if not found or source is None:
            raise InputError(
                f"nothing to resume at '{path}': expected auto, never, a run's folder, or RUN/checkpoints/epoch_NNNN"
            )
        _refuse_other_settings(config, source, more={"epochs"})  # a longer training is what one continues for
        _refuse_other_data(source, data, warn)
        if folder.path.resolve() == source.path:
            chosen = _newest_whole(found, warn, folder)
            if path.resolve() != source.path:  # else a restart would go back to it again, and again
                folder.write_source(path.resolve(), chosen.resolve())
            return chosen
        if _is_taken(folder):
            raise InputError(f"'{folder.path}' holds a run already: take another --output_dir to resume from '{path}'")
        return _newest_whole(found, warn)
    if not _is_taken(folder):
        return None
    if config.resume == "never":
        raise InputError(
            f"'{folder.path}' holds a run already: take another --output_dir, or --resume auto to continue with it"
        )
    if folder.config.is_file():
        began = folder.read_source()
        went_back = config.resume != "auto" and began and began[1].parent == folder.checkpoints.resolve()
        _refuse_other_settings(config, folder, more={"epochs"} if went_back else frozenset())
        _refuse_other_data(folder, data, warn)
    if not own:
        return _first_checkpoint(config, folder, data, warn)
    if not any((path / MANIFEST).is_file() for path in own):
        raise InputError(
            f"the checkpoints in '{folder.checkpoints}' have no {MANIFEST}: they were written by an earlier version of "
            "this project, which this one cannot resume from; take another --output_dir"
        )
    return _newest_whole(own, warn, folder)


def _first_checkpoint(
    config: TrainingConfig, folder: RunFolder, data: RunData, warn: Callable[[str], None]
) -> Path | None:
    """The one of another run that this one began from; None if it began from nothing."""
    began = folder.read_source()
    if not began:
        return None
    checkpoint = began[1]
    source, _ = _named_by(checkpoint)
    wrong = verify(checkpoint) or (None if source else "no config.yaml above it says what it is of")
    if wrong:
        raise InputError(
            f"'{folder.path}' began from '{checkpoint}' and has no checkpoint of its own yet, but that one is gone or "
            f"damaged ({wrong}): put it back, or take another --output_dir"
        )
    if not folder.config.is_file():  # killed between the two: as at the first start
        _refuse_other_settings(config, source, more={"epochs"})
        _refuse_other_data(source, data, warn)
    return checkpoint


def _named_by(path: Path) -> tuple[RunFolder | None, list[Path]]:
    """The run that a path of --resume belongs to, if any, and the checkpoints that are meant."""
    if not (path / MANIFEST).is_file():
        return RunFolder(path.resolve()), named_checkpoints(RunFolder(path).checkpoints)
    return run_of(path), [path]


def run_of(checkpoint: Path) -> RunFolder | None:
    """The run that a checkpoint lies in; None if no config.yaml above it says what it is of."""
    return next((RunFolder(p) for p in checkpoint.resolve().parents if RunFolder(p).config.is_file()), None)


def _newest_whole(found: list[Path], warn: Callable[[str], None], own: RunFolder | None = None) -> Path:
    """The last of these checkpoints that its manifest says is whole.

    Args:
        own: the folder that the run continues in. Its later checkpoints are moved out of the way: of the next ones, the
            newest are kept, and gone on from. Nothing is changed in another run's folder.
    """
    ours = own is not None and found[0].resolve().parent == own.checkpoints.resolve()
    damaged = []
    for path in reversed(found):
        wrong = verify(path)
        if wrong is None:
            break
        damaged.append((path, wrong))
    else:
        mend = "take another --output_dir, or remove that folder to start anew" if ours else "name another checkpoint"
        raise InputError(
            f"none of the {len(found)} checkpoints in '{found[0].parent}' is whole ({damaged[0][1]}): {mend}"
        )
    for torn, wrong in damaged:
        kept = f"it is kept as {_set_aside(own.checkpoints / torn.name, 'damaged')}" if ours else "it is passed over"
        warn(f"checkpoint '{torn}' is damaged ({wrong}): {kept}, and the one before, {path.name}, is used")
    if not ours:
        return path
    chosen = own.checkpoints / path.name
    there = named_checkpoints(own.checkpoints)
    for later in there[there.index(chosen) + 1 :]:
        warn(f"checkpoint '{later}' is later than '{path}': it is kept as {_set_aside(later, 'left')}")
    return chosen


def _set_aside(path: Path, why: str) -> str:
    """Gives a checkpoint the first free name of NAME.why, NAME.why1, …; returns it."""
    names = (path.with_name(f"{path.name}.{why}{number or ''}") for number in count())
    return path.rename(next(name for name in names if not name.exists())).name


def _other_settings(config: TrainingConfig, folder: RunFolder) -> list[str]:
    """Settings that make another run of it, as "name (value there, value here)"."""
    stored = folder.read_config()
    old, new = asdict(stored), asdict(resumed_settings(config, stored))
    return [
        f"{name} ({old.get(name)} there, {new[name]} here)"
        for name in new
        if name not in FREE_TO_CHANGE and old.get(name) != new[name]
    ]


def _refuse_other_settings(config: TrainingConfig, folder: RunFolder, more: Set[str] = frozenset()) -> None:
    changed = [said for said in _other_settings(config, folder) if said.split(" (")[0] not in more]
    if changed:
        longer = f" (with --resume {folder.path}, to resume from it)" if changed[0].startswith("epochs (") else ""
        raise InputError(
            f"'{folder.path}' holds a run with other settings: {', '.join(changed)}; take another --output_dir{longer}"
        )


def resumed_settings(config: TrainingConfig, stored: TrainingConfig) -> TrainingConfig:
    """The settings with which a run resumes.

    Args:
        config: those of the command.
        stored: those of the run. Where the command does not name a setting whose default has changed since, the run
            keeps the default of its time; what the command leaves open, such as precision "auto", is as the run has it.
    """
    config = as_of(config, stored.format_version)
    if stored.format_version == 1:  # such a run has decided nothing
        return config
    kept = [name for name, left_open in LEFT_OPEN.items() if getattr(config, name) in left_open]
    return config.replaced(**{name: getattr(stored, name) for name in kept})


def _other_data(folder: RunFolder, data: RunData) -> list[str]:
    """How the data of the run in a folder differs from this, in words; of a run of format 1, as far as it is known."""
    if recorded := folder.read_data():
        return recorded.differences(data.fingerprint)
    progress = _known_progress(folder)
    if progress is None:
        return []
    found = []
    if digest_names(progress["classes"]) != digest_names(data.classes):
        found.append(f"names or order of the labels ({len(progress['classes']):,} there, {len(data.classes):,} here)")
    images = data.fingerprint.splits["train"].images
    if progress["pictures"] != images:
        found.append(f"number of train images ({progress['pictures']:,} there, {images:,} here)")
    return found


def _known_progress(folder: RunFolder) -> dict[str, Any] | None:
    """The progress of a run's newest checkpoint that can be read; None if there is none."""
    for path in reversed(named_checkpoints(folder.checkpoints)):
        with suppress(InputError):
            return read_progress(path)
    return None


def _refuse_other_data(folder: RunFolder, data: RunData, warn: Callable[[str], None]) -> None:
    if other := _other_data(folder, data):
        raise InputError(
            f"'{folder.path}' holds a run on other data: {'; '.join(other)}; take another --output_dir, or give back "
            "the data that it began with (to start on new data from its weights, give its model as --weights)"
        )
    if not folder.data.is_file() and _known_progress(folder):
        warn(
            f"'{folder.path}' was made by a version that did not record its data: label names and the number of "
            "train images are the same; whether the files are cannot be told"
        )
