"""Where a run goes, and where it goes on from."""

from collections.abc import Callable, Set
from dataclasses import asdict
from itertools import count
from pathlib import Path

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.errors import InputError
from dual_cross_attention.training.checkpoints import MANIFEST, list_checkpoints, verify
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
        warn: is told of checkpoints that are damaged, and passed over.

    Raises:
        InputError: the folder holds another run, `resume` names nothing to go on from, or no checkpoint is whole.
    """
    if config.resume not in ("auto", "never"):
        path = Path(config.resume)
        if (path / MANIFEST).is_file():
            source = next((RunFolder(p) for p in path.resolve().parents if RunFolder(p).config.is_file()), None)
            found = [path]
        else:
            source, found = RunFolder(path.resolve()), list_checkpoints(RunFolder(path).checkpoints)
        if not found or source is None:
            raise InputError(
                f"nothing to resume at '{path}': expected auto, never, a run's folder, or RUN/checkpoints/epoch_NNNN"
            )
        _refuse_other_settings(config, source, more={"epochs"})  # a longer training is what one goes on for
        if folder.config.is_file() and folder.path.resolve() != source.path:
            raise InputError(f"'{folder.path}' holds a run already: take another --output_dir to go on from '{path}'")
        return _newest_whole(found, warn)
    if not folder.config.is_file():
        return None
    if config.resume == "never":
        raise InputError(
            f"'{folder.path}' holds a run already: take another --output_dir, or --resume auto to go on with it"
        )
    _refuse_other_settings(config, folder)
    older = [path for path in folder.checkpoints.glob("epoch_*") if path.name.count("_") == 1 and "." not in path.name]
    if older and not any((path / MANIFEST).is_file() for path in older):
        raise InputError(
            f"the checkpoints in '{folder.checkpoints}' have no {MANIFEST}: they were written by an earlier version of "
            "this project, which this one cannot go on from; take another --output_dir"
        )
    found = list_checkpoints(folder.checkpoints)
    return _newest_whole(found, warn) if found else None


def _newest_whole(found: list[Path], warn: Callable[[str], None]) -> Path:
    """The last of these checkpoints that its manifest says is whole; those after it are moved out of the way."""
    damaged = []
    for path in reversed(found):
        wrong = verify(path)
        if wrong is None:
            for other in damaged:
                other.rename(_free_name(other))
            return path
        warn(f"checkpoint '{path}' is damaged ({wrong}): it is kept as {path.name}.damaged, and the one before is used")
        damaged.append(path)
    raise InputError(
        f"none of the {len(found)} checkpoints in '{found[0].parent}' is whole ({wrong}): take another "
        "--output_dir, or remove that folder to start anew"
    )


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.damaged{number or ''}") for number in count())
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
