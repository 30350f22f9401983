"""Training: from settings to a run's folder."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from rich.console import Console
from safetensors import SafetensorError
from torch import nn

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.without_effect import choice_of_local_tokens_without_effect, settings_without_effect
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.devices import (
    available_precision,
    choose_device,
    choose_precision,
    keep_freed_memory,
    precision_setting,
    resolve_precision,
)
from dual_cross_attention.errors import InputError, InterruptedRun, LostProcessError
from dual_cross_attention.inference.model_files import build_model
from dual_cross_attention.models.lora import add_lora
from dual_cross_attention.program import train_command
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.tasks.data_module import RunSetup, pixel_stats, pixel_stats_warning
from dual_cross_attention.tasks.data_roots import is_synthetic, with_data_root
from dual_cross_attention.tasks.registry import read_setup
from dual_cross_attention.text import escape
from dual_cross_attention.training.checkpointing.artifacts import complete_results
from dual_cross_attention.training.checkpointing.checkpoints import remove_leftovers
from dual_cross_attention.training.distributed.rendezvous import process_group_options
from dual_cross_attention.training.distributed.strategy import is_peer_failure, on_rank_zero, refuse_accelerate_plugins
from dual_cross_attention.training.resume import (
    ResumeDecision,
    RunData,
    as_the_run_reads,
    decide_resume,
    resolve_output_dir,
)
from dual_cross_attention.training.run_context import RunContext
from dual_cross_attention.training.run_lock import RunLock
from dual_cross_attention.training.run_snapshot import (
    default_runs,
    inspect_for_resume,
    resolve_resume_path,
    runs_to_resume,
)
from dual_cross_attention.training.signals import LEFT_EARLY, SignalHandler
from dual_cross_attention.training.trackers import check_trackers
from dual_cross_attention.training.trainer import Trainer

T = TypeVar("T")
REAL_DATA = {"fgvc": "--task fgvc --dataset cub", "reid": "--task reid --dataset market1501"}  # after the toy dataset
SHOWN_UNREADABLE = 10  # of the images that could not be read, at the end of a run


def train(config: TrainingConfig, console: Console) -> dict[str, float]:
    """Train as the settings say, or continue with the run that the folder holds.

    Returns:
        The best epoch's row of metrics.jsonl.

    Raises:
        InputError: settings, data, weights or folder that cannot work.
        TrainingDivergedError: a loss or a gradient is not finite.
        InterruptedRun: a signal came, and the state is saved, if there was a step.
        LostProcessError: another process has ended.
    """
    config = with_data_root(config)
    device = choose_device(config.device)
    refuse_accelerate_plugins()
    PartialState(cpu=device.type == "cpu", **process_group_options())  # under torchrun, ranks meet here
    locks: list[RunLock] = []  # by the first process
    with SignalHandler() as interruptions:  # after PartialState, whose wait for other ranks no handler can interrupt
        try:
            choose_precision(config.precision, device, config.format_version)  # refuse before anything is read
            check_trackers(config.trackers)
            keep_freed_memory()
            if config.task == "reid":
                config = as_the_run_reads(config, runs_to_resume(config))
            setup = _starting(interruptions, lambda: read_setup(config))
            for line in settings_without_effect(config):
                console.print(f"warning: {line}", style="yellow")
            opened = on_rank_zero(lambda: _open_folder(config, setup, console, interruptions, device, locks))
            setup.config = opened.decision.config
            return _train(setup, console, interruptions, device, opened)
        except RuntimeError as error:
            if not is_peer_failure(error):
                raise
            raise LostProcessError(
                "another process has ended: see its error message; without one, it was killed (by the system, where "
                "memory is short); the same command, or a restart by the launcher, resumes from the last checkpoint"
            ) from error
        finally:
            for lock in locks:
                lock.release()


def _starting(interruptions: SignalHandler, do: Callable[[], T]) -> T:
    """Calls `do` and returns its result; a signal raises InterruptedRun at once, as there is no state to save yet."""
    try:
        with interruptions.raise_immediately():
            return do()
    except BaseException as error:
        if not interruptions.requested:
            raise
        # Of any type: C++ extensions replace an exception that is raised inside of them by one of their own.
        raise InterruptedRun(f"{interruptions.requested}: {LEFT_EARLY}") from error


class OpenedRun(NamedTuple):
    """What rank 0 has decided before a run begins or resumes.

    Args:
        path: of the run folder, which rank 0 has locked.
        decision: how the run begins or resumes, with the precision resolved.
        data: the fingerprint of the data.
    """

    path: Path
    decision: ResumeDecision
    data: DataFingerprint


def _open_folder(
    config: TrainingConfig,
    setup: RunSetup,
    console: Console,
    interruptions: SignalHandler,
    device: torch.device,
    locks: list[RunLock],
) -> OpenedRun:
    """Choose and lock the run folder, add the lock to `locks`, and decide what to resume from."""
    data = RunData(setup.fingerprint(), setup.classes)
    folder = _choose_folder(config, data, console)
    lock = RunLock(folder)
    lock.acquire()
    locks.append(lock)
    try:
        decision = _starting(interruptions, lambda: _prepare_folder(config, folder, data, console))
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write to the run's folder '{folder.path}': {error}") from error
    config = _resolve_precision(config, decision, device, console)
    return OpenedRun(folder.path, replace(decision, config=config), data.fingerprint)


def _choose_folder(config: TrainingConfig, data: RunData, console: Console) -> RunFolder:
    if config.output_dir:
        return RunFolder(config.output_dir)
    path, lines = resolve_output_dir(config, default_runs(config), resolve_resume_path(config), data)
    for line in lines:
        console.print(line)
    return RunFolder(path)


def _prepare_folder(config: TrainingConfig, folder: RunFolder, data: RunData, console: Console) -> ResumeDecision:
    """Decide how the run in a locked folder begins or resumes, and bring the folder into that state.

    Raises:
        InputError: see `decide_resume`.
        OSError, SafetensorError: a file of the run cannot be renamed or written.
    """
    if folder.config.is_file():  # before the look: a checkpoint that was being replaced has its name again
        folder.remove_leftovers()
        remove_leftovers(folder.checkpoints)
        remove_leftovers(folder.path, folder.diverged.name)
    decision = decide_resume(config, inspect_for_resume(config, folder), data)
    for checkpoint, name in decision.renames:
        checkpoint.rename(checkpoint.with_name(name))
    for line in decision.warnings:
        console.print(f"warning: {line}", style="yellow")
    if decision.progress is not None:
        complete_results(folder, decision.stored, decision.progress, data.fingerprint)
    return decision


def _resolve_precision(
    config: TrainingConfig, decision: ResumeDecision, device: torch.device, console: Console
) -> TrainingConfig:
    """The settings of a decision with a precision that the device has.

    Args:
        config: the settings of the command.
    """
    decided = decision.config
    if decision.stored is None:
        return decided.replaced(precision=resolve_precision(decided.precision, device, decided.format_version))
    if config.precision == "auto" and available_precision(decided.precision, device) != decided.precision:
        precision = resolve_precision("auto", device, decided.format_version)
        console.print(
            f"the run was in {decided.precision}, which {device.type} does not have: it resumes in {precision}"
        )
        return decided.replaced(precision=precision)
    return decided


def _train(
    setup: RunSetup,
    console: Console,
    interruptions: SignalHandler,
    device: torch.device,
    opened: OpenedRun,
) -> dict[str, float]:
    decision, folder = opened.decision, RunFolder(opened.path)
    if decision.is_finished:
        epochs, progress = decision.config.epochs, decision.progress
        console.print(f"{folder.path} holds this run already, all {epochs} epochs of it; nothing to do.")
        _report(decision.config, folder, progress.state.best, progress.unreadable, console)
        return progress.state.best

    trainer = _starting(interruptions, lambda: _build_trainer(setup, console, interruptions, device, opened))
    try:
        if trainer.accelerator.is_main_process:
            if decision.source:
                folder.write_source(*decision.source)
            folder.write_data(opened.data)
            folder.write_config(trainer.config)
    except OSError as error:
        raise InputError(f"cannot write to the run's folder '{folder.path}': {error.strerror}") from error
    best = trainer.fit()
    _report(decision.config, folder, best, trainer.unreadable.found, console)
    return best


def _build_trainer(
    setup: RunSetup,
    console: Console,
    interruptions: SignalHandler,
    device: torch.device,
    opened: OpenedRun,
) -> Trainer:
    """Model built, weights loaded (by the trainer, where there is a checkpoint); nothing is written."""
    config, checkpoint, folder = opened.decision.config, opened.decision.checkpoint, RunFolder(opened.path)
    config = setup.config = setup.resolve(config)
    set_seed(config.seed)
    pretrained = False if checkpoint else {"imagenet": True, "none": False}.get(config.weights, config.weights)
    if pretrained is True:
        console.print(f"weights: timm's of {config.backbone}, fetched unless they are in the cache")
    model = build_model(config, len(setup.classes), pretrained)
    stats = pixel_stats(config, model)
    for line in [] if model.read_out.reads_patches else choice_of_local_tokens_without_effect(config):
        console.print(f"warning: {line}", style="yellow")
    if warning := None if checkpoint else pixel_stats_warning(config, model):
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    if config.format_version > 1:  # else None stays: the rule of that time
        config = setup.config = config.replaced(mean=list(stats.mean), std=list(stats.std))
    model.set_grad_checkpointing(config.use_gradient_checkpointing)
    model.freeze(config.freeze)
    if config.lora_rank:
        add_lora(model, config.lora_rank, in_glca=config.glca_init == "last_block")
    task = setup.build_task(model)
    loaders = setup.train_loader(model, device), setup.test_loader(model, device)

    precision = precision_setting(choose_precision(config.precision, device, config.format_version))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for warning in setup.warnings:
        console.print(f"warning: {warning}", style="yellow")
    console.print(
        "\n".join([f"{config.dataset}: {setup.description}", *setup.notes]) + "\n"
        f"{config.backbone} at {config.img_size[0]}x{config.img_size[1]}, {config.ablation}: "
        f"{parameters / 1e6:.1f} M parameters{_trained(model)}, on {device.type} in {precision}, weights from "
        f"{config.weights}\n"
        f"pixels: {stats}\n"
        f"run folder: {folder.path}"
    )
    if config.warmup_epochs > config.epochs:
        console.print(
            f"warmup_epochs {config.warmup_epochs:g} is longer than the training: shortened to its {config.epochs} "
            f"epoch{'s'[: config.epochs > 1]}, in which the learning rate only rises; --warmup_epochs N sets another"
        )
    run = RunContext(config, setup.classes, folder, console, opened.data)
    return Trainer(task, *loaders, run, checkpoint, interruptions)


def _trained(model: nn.Module) -> str:
    """A clause on how many of the parameters are trained, where some of the backbone are not."""
    if all(parameter.requires_grad for parameter in model.backbone.parameters()):
        return ""
    return f", {sum(each.numel() for each in model.parameters() if each.requires_grad) / 1e6:.2f} M of them trained"


def _report(
    config: TrainingConfig, folder: RunFolder, best: dict[str, float], unreadable: dict[str, str], console: Console
) -> None:
    """The end of a run: what came out, where it is, what to type next."""
    parts = [f"{name.removeprefix('val/')} {value:.2f} %" for name, value in best.items() if name.startswith("val/")]
    console.print(f"\nbest epoch {best['epoch']:.0f} of {config.epochs}: {', '.join(parts)}")
    if unreadable:
        console.print(
            f"{len(unreadable)} images could not be read (in training, the next one took the place of each), such as",
            style="yellow",
        )
        for path, reason in islice(unreadable.items(), SHOWN_UNREADABLE):
            console.print(f"  {escape(path)}: {reason}", style="yellow", soft_wrap=True)
    example = f"\n  {train_command()} {REAL_DATA[config.task]} --data_root DIR"
    path, has_events = shlex.quote(str(folder.path)), "tensorboard" in config.trackers
    console.print(
        f"results: {folder.path}  (best.safetensors, metrics.jsonl, config.yaml"
        f"{', TensorBoard events' * has_events})\n"
        "next:\n"
        f"  dcal eval {path}"
        + f"\n  tensorboard --logdir {path}" * has_events
        + (example if is_synthetic(config.task, config.dataset) else ""),
        soft_wrap=True,
    )
