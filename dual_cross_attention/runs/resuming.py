"""Where a run goes, and where it goes on from."""

from collections.abc import Set
from dataclasses import asdict
from itertools import count
from pathlib import Path

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.errors import InputError
from dual_cross_attention.training.checkpoints import list_checkpoints
from dual_cross_attention.training.run_folder import RunFolder

# A run may go on with these changed: they say where and how it runs, not what it computes.
FREE_TO_CHANGE = {
    "data_root",
    "download",
    "device",
    "compile",
    "cache",
    "num_workers",
    "eval_batch_size",
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


def find_checkpoint(config: TrainingConfig, folder: RunFolder) -> Path | None:
    """Where to go on from, by `config.resume` and what the folder holds; None to start.

    Raises:
        InputError: the folder holds another run, or `resume` names nothing to go on from.
    """
    if config.resume not in ("auto", "never"):
        path = Path(config.resume)
        found = [path] if (path / "progress.json").is_file() else list_checkpoints(RunFolder(path))
        if not found:
            raise InputError(
                f"nothing to resume at '{path}': expected auto, never, a run's folder, or RUN/checkpoints/epoch_NNNN"
            )
        source = RunFolder(found[-1].resolve().parent.parent)
        _refuse_other_settings(config, source, more={"epochs"})  # a longer training is what one goes on for
        if folder.config.is_file() and folder.path.resolve() != source.path:
            raise InputError(f"'{folder.path}' holds a run already: take another --output_dir to go on from '{path}'")
        return found[-1]
    if not folder.config.is_file():
        return None
    if config.resume == "never":
        raise InputError(
            f"'{folder.path}' holds a run already: take another --output_dir, or --resume auto to go on with it"
        )
    _refuse_other_settings(config, folder)
    found = list_checkpoints(folder)
    return found[-1] if found else None


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
