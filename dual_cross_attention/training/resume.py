"""Decides which folder a run has, and from which checkpoint and with which settings it resumes.

Nothing here reads or writes a file: `run_snapshot.py` reads, and `run.py` carries a decision out. A run resumes only
with the settings and on the data that it began with.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.resumed import resumed_settings, setting_differences
from dual_cross_attention.data.fingerprint import DataFingerprint, digest_names
from dual_cross_attention.errors import InputError
from dual_cross_attention.training.checkpointing.checkpoints import MANIFEST
from dual_cross_attention.training.checkpointing.train_progress import TrainProgress
from dual_cross_attention.training.run_snapshot import ResumeSnapshots, RunSnapshot, require

READING = ("cameras", "bbox")
"""Settings that a resumed run keeps and that decide how the data is read, before it is known which run resumes."""


class RunData(NamedTuple):
    """The data of a run that is about to begin or to resume.

    Args:
        fingerprint: to be compared with that of the run.
        classes: class names, or training identities, for runs that have not recorded a fingerprint.
    """

    fingerprint: DataFingerprint
    classes: list[str]


@dataclass(frozen=True)
class ResumeDecision:
    """How a run begins or resumes.

    Args:
        config: the settings to train with. Of a run that resumes, those that the command leaves open are as the run
            has them.
        checkpoint: to resume from; None to begin.
        stored: settings in the config.yaml of the run that resumes, or that the checkpoint is of; None: a new run.
        progress: how far the run had come at `checkpoint`; None if that is in the folder of another run.
        renames: checkpoints of the run to be renamed first, because they are damaged or later than `checkpoint`, each
            with its new name.
        source: for resumed_from.json, see `RunFolder.write_source`; None: leave that file as it is.
        warnings: for the user.
    """

    config: TrainingConfig
    checkpoint: Path | None = None
    stored: TrainingConfig | None = None
    progress: TrainProgress | None = None
    renames: tuple[tuple[Path, str], ...] = ()
    source: tuple[Path, Path] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether the run has all its epochs."""
        return self.progress is not None and self.progress.state.epoch >= self.config.epochs


def resolve_output_dir(
    config: TrainingConfig, candidates: Iterable[RunSnapshot], resume_from: Path | None, data: RunData
) -> tuple[Path, list[str]]:
    """The folder of a run whose command names none: the first candidate that holds this very run, or nothing yet.

    Args:
        config: the settings of the command.
        candidates: the default folders in order, see `default_runs`; read only as far as needed.
        resume_from: see `ResumeSnapshots`.
        data: the data of the command.

    Returns:
        The folder, and lines for the user: which runs of the same settings are on other data.

    Raises:
        InputError: a candidate holds settings or data.json that cannot be read.
    """
    lines = []
    for run in candidates:
        if not run.is_taken:
            return run.path, lines
        if not _is_same_run(config, run, resume_from):
            continue
        if not (differences := _data_differences(run, data)):
            return run.path, lines
        lines.append(f"'{run.path}' holds this run on other data, so it is left alone: {'; '.join(differences)}")
    raise ValueError("expected candidates without end, or with a free folder")


def _is_same_run(config: TrainingConfig, run: RunSnapshot, resume_from: Path | None) -> bool:
    if config.resume == "never" or (run.config is not None and setting_differences(config, require(run.config))):
        return False
    return run.config is not None if resume_from is None else _began_from(run, resume_from)


def _began_from(run: RunSnapshot, path: Path) -> bool:
    """Whether --resume named this path, or meant this checkpoint, when the run began."""
    return path in (require(run.source) or ())


def decide_resume(config: TrainingConfig, snapshots: ResumeSnapshots, data: RunData) -> ResumeDecision:
    """Whether a run begins or resumes, from which checkpoint and with which settings.

    A run that began from the checkpoint of another run resumes from its own checkpoints, or from that one as long as it
    has none. The same --resume PATH given again means the same run. This also holds for a run that went back to an
    earlier checkpoint of its own.

    Args:
        config: the settings of the command.
        snapshots: of the run folder, and of what the run is to resume from.
        data: the data of the command.

    Raises:
        InputError: the folder holds another run, or the run on other data; `resume` names nothing to resume from; no
            checkpoint is valid; or there is none yet, and the one that the run began from is not valid any more.
    """
    own, resume_from = snapshots.own, snapshots.resume_from
    if own.checkpoints and own.config is None:
        raise InputError(
            f"'{own.path}' holds checkpoints, but no config.yaml to say which run they belong to: put it back, or take "
            "another --output_dir"
        )
    if resume_from is not None and not _began_from(own, resume_from):
        return _resume_from_path(config, own, snapshots.named, resume_from, data)
    if not own.is_taken:
        return ResumeDecision(config)
    if config.resume == "never":
        raise InputError(f"'{own.path}' holds a run already: take another --output_dir, or --resume auto to resume it")
    return _resume_own(config, own, snapshots.origin, resume_from, data)


def _resume_from_path(
    config: TrainingConfig, own: RunSnapshot, named: RunSnapshot | None, resume_from: Path, data: RunData
) -> ResumeDecision:
    """From --resume PATH: into a new folder, or back to an earlier checkpoint of the run in the folder."""
    if named is None or named.config is None or not named.checkpoints:
        raise InputError(
            f"nothing to resume at '{config.resume}': expected auto, never, a run folder with config.yaml and "
            "checkpoints, or RUN/checkpoints/epoch_NNNN"
        )
    _refuse_other_settings(config, named, but={"epochs"})  # training longer is why one resumes another run
    warnings = _refuse_other_data(named, data)
    is_own = own.resolved == named.resolved
    if not is_own and own.is_taken:
        raise InputError(
            f"'{own.path}' holds a run already: take another --output_dir to resume from '{config.resume}'"
        )
    decision = _from_newest_valid(config, named, own, warnings)
    if is_own and resume_from == own.resolved:  # means the newest checkpoint, as auto does: nothing to record
        return decision
    return replace(decision, source=(resume_from, named.checkpoint_dir / decision.checkpoint.name))


def _resume_own(
    config: TrainingConfig, own: RunSnapshot, origin: RunSnapshot | None, resume_from: Path | None, data: RunData
) -> ResumeDecision:
    """From the newest checkpoint of the run in the folder; without any, as the run began."""
    warnings: list[str] = []
    if own.config is not None:
        source = require(own.source)
        went_back = resume_from is not None and source is not None and source[1].parent == own.checkpoint_dir
        _refuse_other_settings(config, own, but={"epochs"} if went_back else frozenset())
        warnings = _refuse_other_data(own, data)
    if not own.checkpoints:
        return _begin_again(config, own, origin, data, warnings)
    if not own.has_manifest:
        raise InputError(
            f"the checkpoints in '{own.path / 'checkpoints'}' have no {MANIFEST}: they were written by an earlier "
            "version of this project, which this one cannot resume from; take another --output_dir"
        )
    return _from_newest_valid(config, own, own, warnings)


def _begin_again(
    config: TrainingConfig, own: RunSnapshot, origin: RunSnapshot | None, data: RunData, warnings: list[str]
) -> ResumeDecision:
    """From the checkpoint of another run that this one began from, if any: it was killed before a checkpoint."""
    source = require(own.source)
    if source is None:
        stored = require(own.config)
        return ResumeDecision(resumed_settings(config, stored), stored=stored, warnings=tuple(warnings))
    reasons = [reason for _, reason in origin.damaged]
    if origin.config is None:
        reasons.append("no config.yaml above it says which run it belongs to")
    if reasons:
        raise InputError(
            f"'{own.path}' began from '{source[1]}' and has no checkpoint of its own yet, but that one is gone or "
            f"damaged ({reasons[0]}): put it back, or take another --output_dir"
        )
    if own.config is None:  # killed before its settings were written: as at the first start
        _refuse_other_settings(config, origin, but={"epochs"})
        warnings = _refuse_other_data(origin, data)
    stored = require(origin.config if own.config is None else own.config)
    return ResumeDecision(resumed_settings(config, stored), source[1], stored, warnings=tuple(warnings))


def _from_newest_valid(
    config: TrainingConfig, run: RunSnapshot, own: RunSnapshot, warnings: list[str]
) -> ResumeDecision:
    """From the newest valid checkpoint of a snapshot.

    If it lies in the run's own folder, damaged and later checkpoints get other names: the newest ones are kept and
    resumed from, so those would be in the way. Nothing is changed in the folder of another run.
    """
    is_own = run.checkpoint_dir == own.checkpoint_dir
    if run.valid is None:
        remedy = "take another --output_dir, or remove that folder to begin again" if is_own else "name another one"
        raise InputError(
            f"none of the {len(run.checkpoints)} checkpoints in '{run.checkpoints[0].parent}' is valid "
            f"({run.damaged[0][1]}): {remedy}"
        )
    checkpoint = next((path for path in own.checkpoints if path.name == run.valid.name), None) if is_own else run.valid
    if checkpoint is None:
        raise InputError(
            f"'{run.valid}' does not have the name of a checkpoint: rename it to epoch_NNNN, or "
            "epoch_NNNN_step_NNNNNNNN, to resume its run from it"
        )
    warnings, renames = [*warnings], []

    def rename(name: str, why: str) -> str:
        free = next(new for n in count() if (new := f"{name}.{why}{n or ''}") not in own.entries)
        renames.append((own.path / "checkpoints" / name, free))
        return free

    for path, reason in run.damaged:
        kept = f"it is kept as {rename(path.name, 'damaged')}" if is_own else "it is skipped"
        warnings.append(f"checkpoint '{path}' is damaged ({reason}): {kept}, and {checkpoint.name} is used instead")
    if is_own:
        renamed = {path.name for path, _ in run.damaged}
        for path in own.checkpoints[own.checkpoints.index(checkpoint) + 1 :]:
            if path.name not in renamed:
                kept = rename(path.name, "left")
                warnings.append(f"checkpoint '{path}' is later than '{checkpoint}': it is kept as {kept}")
    stored, progress = require(run.config), require(run.progress)
    return ResumeDecision(
        resumed_settings(config, stored),
        checkpoint,
        stored,
        progress if is_own else None,
        tuple(renames),
        warnings=tuple(warnings),
    )


def _refuse_other_settings(config: TrainingConfig, run: RunSnapshot, but: Set[str]) -> None:
    changed = [(name, text) for name, text in setting_differences(config, require(run.config)) if name not in but]
    if changed:
        hint = f" (with --resume {run.path}, to resume from it)" if changed[0][0] == "epochs" else ""
        raise InputError(
            f"'{run.path}' holds a run with other settings: {', '.join(text for _, text in changed)}; take another "
            f"--output_dir{hint}"
        )


def as_the_run_reads(config: TrainingConfig, runs: Iterable[RunSnapshot]) -> TrainingConfig:
    """The settings of the command, with those in `READING` that it leaves open as the run has them that it resumes.

    Args:
        config: the settings of the command.
        runs: in which the run may be; the first with the same settings is taken, but for `epochs`, which --resume PATH
            may change.
    """
    for run in runs:
        if not isinstance(run.config, TrainingConfig) or type(run.config) is not type(config):
            continue
        if {name for name, _ in setting_differences(config, run.config)} <= {"epochs"}:
            resumed = resumed_settings(config, run.config)
            return config.replaced(**{name: getattr(resumed, name) for name in READING})
    return config


def _data_differences(run: RunSnapshot, data: RunData) -> list[str]:
    """How the data of a run differs from this data, in words; of a run without data.json, as far as it is known."""
    if recorded := require(run.data):
        return recorded.differences(data.fingerprint)
    if run.trained_on is None:
        return []
    classes, images = run.trained_on
    found = []
    if digest_names(classes) != digest_names(data.classes):
        found.append(f"names or order of the labels ({len(classes):,} there, {len(data.classes):,} here)")
    if images != (now := data.fingerprint.splits["train"].images):
        found.append(f"number of train images ({images:,} there, {now:,} here)")
    return found


def _refuse_other_data(run: RunSnapshot, data: RunData) -> list[str]:
    """Warnings about the data, where it does not differ."""
    if differences := _data_differences(run, data):
        raise InputError(
            f"'{run.path}' holds a run on other data: {'; '.join(differences)}; take another --output_dir, or use the "
            "data that it began with (to train on new data from its weights, give its model as --weights)"
        )
    if run.data is None and run.trained_on is not None:
        return [
            f"'{run.path}' was made by a version that did not record its data: label names and the number of train "
            "images are the same; whether the files are the same is unknown"
        ]
    return []
