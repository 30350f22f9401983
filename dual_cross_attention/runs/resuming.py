"""Where a run goes, and where it goes on from."""

from collections.abc import Callable, Set
from dataclasses import asdict
from itertools import count
from pathlib import Path

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.errors import InputError
from dual_cross_attention.training.checkpoints import MANIFEST, named_checkpoints, verify
from dual_cross_attention.training.run_folder import RunFolder

# A run may go on with these changed: they say where and how it runs, not what it computes.
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


def choose_folder(config: TrainingConfig) -> RunFolder:
    """`output_dir`; unset: the first of runs/NAME, runs/NAME-2, … that holds this very run, or nothing yet."""
    if config.output_dir:
        return RunFolder(config.output_dir)
    name = f"runs/{config.task}-{config.dataset}-{config.backbone}-{config.ablation}-seed{config.seed}"
    for number in count(1):
        folder = RunFolder(name if number == 1 else f"{name}-{number}")
        if not folder.config.is_file() or (config.resume == "auto" and not _other_settings(config, folder)):
            return folder


def find_checkpoint(config: TrainingConfig, folder: RunFolder, warn: Callable[[str], None]) -> Path | None:
    """Where to go on from, by `config.resume` and what the folder holds; None to start.

    Args:
        warn: is told of checkpoints that are damaged, or later than the one that was asked for, and set aside.

    Raises:
        InputError: the folder holds another run, `resume` names nothing to go on from, or no checkpoint is whole.
        OSError: a checkpoint cannot be set aside.
    """
    if config.resume not in ("auto", "never"):
        path = Path(config.resume)
        source, found = _named_by(path)
        if not found or source is None:
            raise InputError(
                f"nothing to resume at '{path}': expected auto, never, a run's folder, or RUN/checkpoints/epoch_NNNN"
            )
        _refuse_other_settings(config, source, more={"epochs"})  # a longer training is what one goes on for
        if folder.path.resolve() == source.path:
            return _newest_whole(found, warn, folder)
        if folder.config.is_file():
            raise InputError(f"'{folder.path}' holds a run already: take another --output_dir to go on from '{path}'")
        return _newest_whole(found, warn)
    found = named_checkpoints(folder.checkpoints)
    if not folder.config.is_file():
        if found:
            raise InputError(
                f"'{folder.path}' holds checkpoints, but no {folder.config.name} to say what they are of: put it back, "
                "or take another --output_dir"
            )
        return None
    if config.resume == "never":
        raise InputError(
            f"'{folder.path}' holds a run already: take another --output_dir, or --resume auto to go on with it"
        )
    _refuse_other_settings(config, folder)
    if found and not any((path / MANIFEST).is_file() for path in found):
        raise InputError(
            f"the checkpoints in '{folder.checkpoints}' have no {MANIFEST}: they were written by an earlier version of "
            "this project, which this one cannot go on from; take another --output_dir"
        )
    return _newest_whole(found, warn, folder) if found else None


def _named_by(path: Path) -> tuple[RunFolder | None, list[Path]]:
    """The run that a path of --resume belongs to, if any, and the checkpoints that are meant."""
    if not (path / MANIFEST).is_file():
        return RunFolder(path.resolve()), named_checkpoints(RunFolder(path).checkpoints)
    return next((RunFolder(p) for p in path.resolve().parents if RunFolder(p).config.is_file()), None), [path]


def _newest_whole(found: list[Path], warn: Callable[[str], None], own: RunFolder | None = None) -> Path:
    """The last of these checkpoints that its manifest says is whole.

    Args:
        own: the folder that the run goes on in. Its later checkpoints are moved out of the way: of the next ones, the
            newest are kept, and gone on from. Nothing is changed in another run's folder.
    """
    damaged = set()
    for path in reversed(found):
        wrong = verify(path)
        if wrong is None:
            break
        kept = f"it is kept as {path.name}.damaged" if own else "it is passed over"
        warn(f"checkpoint '{path}' is damaged ({wrong}): {kept}, and the one before is used")
        damaged.add(path.name)
    else:
        raise InputError(
            f"none of the {len(found)} checkpoints in '{found[0].parent}' is whole ({wrong}): take another "
            "--output_dir, or remove that folder to start anew"
        )
    if own is None or path.resolve().parent != own.checkpoints.resolve():
        return path
    ours = named_checkpoints(own.checkpoints)
    chosen = own.checkpoints / path.name
    for later in ours[ours.index(chosen) + 1 :]:
        if later.name in damaged:
            later.rename(_free_name(later, "damaged"))
        else:
            warn(f"checkpoint '{later}' is later than '{path}': it is kept as {later.name}.left")
            later.rename(_free_name(later, "left"))
    return chosen


def _free_name(path: Path, why: str) -> Path:
    names = (path.with_name(f"{path.name}.{why}{number or ''}") for number in count())
    return next(name for name in names if not name.exists())


def _other_settings(config: TrainingConfig, folder: RunFolder) -> list[str]:
    """Settings that make another run of it, as "name (value there, value here)"."""
    old, new = folder.read_config(), asdict(config)
    return [
        f"{name} ({old.get(name)} there, {new[name]} here)"
        for name in new
        if name not in FREE_TO_CHANGE and old.get(name) != new[name]
    ]


def _refuse_other_settings(config: TrainingConfig, folder: RunFolder, more: Set[str] = frozenset()) -> None:
    changed = [said for said in _other_settings(config, folder) if said.split(" (")[0] not in more]
    if changed:
        raise InputError(
            f"'{folder.path}' holds a run with other settings: {', '.join(changed)}; take another --output_dir"
        )
