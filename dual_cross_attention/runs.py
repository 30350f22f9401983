"""From settings to a run: data, model, task and trainer put together."""

import os
import shlex
from collections.abc import Set
from dataclasses import asdict, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from rich.console import Console
from timm.data import resolve_data_config
from torch.utils.data import DataLoader

from dual_cross_attention.configs import FGVCConfig
from dual_cross_attention.data import FineGrainedData, build_loaders, load_fgvc, test_transform, train_transform
from dual_cross_attention.data.unreadable import UnreadablePictures
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.training.checkpoints import (
    build_model,
    find_model_file,
    list_checkpoints,
    load_model,
    read_progress,
)
from dual_cross_attention.training.devices import choose_device, choose_precision
from dual_cross_attention.training.progress import track
from dual_cross_attention.training.run_folder import RunFolder
from dual_cross_attention.training.trainer import Trainer

# A run may go on with these changed: they say where and how it runs, not what it computes.
FREE_TO_CHANGE = {
    "data_root",
    "download",
    "device",
    "num_workers",
    "eval_batch_size",
    "use_gradient_checkpointing",
    "output_dir",
    "resume",
}
SHOWN_UNREADABLE = 10  # of the pictures that could not be read, at the end of a run


def train(config: FGVCConfig, console: Console) -> dict[str, float]:
    """Train as the settings say, or go on with the run that the folder holds.

    Returns:
        The best epoch's row of metrics.jsonl.

    Raises:
        InputError: settings, data, weights or folder that cannot work.
        TrainingDivergedError: a loss is not finite.
    """
    folder = choose_folder(config)
    checkpoint = find_checkpoint(config, folder)
    if checkpoint and checkpoint.parent == folder.checkpoints:
        progress = read_progress(checkpoint)
        if progress["epoch"] >= config.epochs:
            console.print(f"{folder.path} holds this run already, all {config.epochs} epochs of it; nothing to do.")
            _report(config, folder, progress["best"], progress["unreadable"], console)
            return progress["best"]

    device = choose_device(config.device)
    choose_precision(config.precision, device)  # refuse before anything is read or fetched
    data = load_fgvc(config.dataset, config.data_root, config.download)
    set_seed(config.seed)
    pretrained = {"imagenet": True, "none": False}.get(config.weights, config.weights)
    if pretrained is True:
        console.print(f"weights: timm's of {config.backbone}, fetched unless they are in the cache")
    model = build_model(config, len(data.classes), pretrained)
    model.set_grad_checkpointing(config.use_gradient_checkpointing)
    loaders = _loaders(config, data, model, device, min_batch=2 if model.has_pwca else 1)
    task = FGVCTask(model, config.weight_bound, config.label_smoothing)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"{config.dataset}: {len(data.classes)} classes, "
        f"{len(data.train)} training and {len(data.test)} test pictures\n"
        f"{config.backbone} at {config.img_size[0]}x{config.img_size[1]}, {config.ablation}: "
        f"{parameters / 1e6:.1f} M parameters, on {device.type}, weights from {config.weights}\n"
        f"run folder: {folder.path}"
    )
    trainer = Trainer(task, *loaders, config, data.classes, folder, console)
    try:
        if trainer.accelerator.is_main_process:
            folder.write_config(config)
    except OSError as error:
        raise InputError(f"cannot write to the run's folder '{folder.path}': {error.strerror}") from error
    best = trainer.fit(checkpoint)
    _report(config, folder, best, trainer.unreadable.found, console)
    return best


def choose_folder(config: FGVCConfig) -> RunFolder:
    """`output_dir`; unset: the first of runs/NAME, runs/NAME-2, … that holds this very run, or nothing yet."""
    if config.output_dir:
        return RunFolder(config.output_dir)
    name = f"runs/{config.dataset}-{config.backbone}-{config.ablation}-seed{config.seed}"
    for number in count(1):
        folder = RunFolder(name if number == 1 else f"{name}-{number}")
        if not folder.config.is_file() or (config.resume == "auto" and not _other_settings(config, folder)):
            return folder


def find_checkpoint(config: FGVCConfig, folder: RunFolder) -> Path | None:
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


def _other_settings(config: FGVCConfig, folder: RunFolder) -> list[str]:
    """Settings that make another run of it, as "name (value there, value here)"."""
    old, new = folder.read_config(), asdict(config)
    return [
        f"{name} ({old.get(name)} there, {new[name]} here)"
        for name in new
        if name not in FREE_TO_CHANGE and old.get(name) != new[name]
    ]


def _refuse_other_settings(config: FGVCConfig, folder: RunFolder, more: Set[str] = frozenset()) -> None:
    changed = [said for said in _other_settings(config, folder) if said.split(" (")[0] not in more]
    if changed:
        raise InputError(
            f"'{folder.path}' holds a run with other settings: {', '.join(changed)}; take another --output_dir"
        )


def evaluate(
    run_or_checkpoint: str | Path,
    data_root: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """A trained model on its test split.

    Args:
        run_or_checkpoint: a run's folder (its best model is taken), or a model file of one.
        data_root: the data set; None: where the run found it.
        device: "auto", "cpu", "cuda" or "mps".
        precision, batch_size, num_workers: as the settings of that name; None: as in the run.

    Returns:
        "checkpoint", "dataset", "images", "unreadable", and the task's metrics in percent.

    Raises:
        InputError: no such model, or other classes than it was trained on.
    """
    chosen = choose_device(device)
    saved = load_model(run_or_checkpoint)
    chosen_precision = choose_precision(precision or saved.config.precision, chosen)
    config = replace(
        saved.config,
        data_root=data_root or saved.config.data_root,
        eval_batch_size=saved.config.eval_batch_size if batch_size is None else batch_size,
        num_workers=saved.config.num_workers if num_workers is None else num_workers,
    )
    data = load_fgvc(config.dataset, config.data_root)
    if data.classes != saved.classes:
        raise InputError(
            f"the model knows {len(saved.classes)} classes ({saved.classes[0]}, …), the data at '{config.data_root}' "
            f"has {len(data.classes)} ({data.classes[0]}, …): expected the same, in the same order"
        )
    console = console or Console(quiet=True)
    unreadable = UnreadablePictures(lambda message: console.print(f"warning: {message}", style="yellow"))
    metrics = _score(saved.model.to(chosen), config, data, chosen_precision, unreadable, console)
    return {
        "checkpoint": str(find_model_file(run_or_checkpoint)),
        "dataset": config.dataset,
        "images": len(data.test) - len(unreadable),
        "unreadable": len(unreadable),
        **metrics,
    }


def _score(
    model: DualCrossAttentionViT,
    config: FGVCConfig,
    data: FineGrainedData,
    precision: str,
    unreadable: UnreadablePictures,
    console: Console,
) -> dict[str, float]:
    """The task's metrics on the test split, on the model's device."""
    device = next(model.parameters()).device
    _, loader = _loaders(config, data, model, device, min_batch=1)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        return FGVCTask(model).evaluate(track(unreadable.watch(loader), "evaluate", len(loader), console))


def _loaders(
    config: FGVCConfig, data: FineGrainedData, model: DualCrossAttentionViT, device: torch.device, min_batch: int
) -> tuple[DataLoader, DataLoader]:
    """Training and test loader, normalised as the backbone was pretrained."""
    norm = resolve_data_config(pretrained_cfg=model.backbone.pretrained_cfg)
    size, resize = tuple(config.img_size), tuple(config.resize())
    return build_loaders(
        data,
        train_transform(size, resize, norm["mean"], norm["std"], config.flip),
        test_transform(size, resize, norm["mean"], norm["std"]),
        config.batch_size,
        config.eval_batch_size or 4 * config.batch_size,
        _workers(device) if config.num_workers is None else config.num_workers,
        config.seed,
        device.type,
        min_batch,
    )


def _workers(device: torch.device) -> int:
    """Processes that read pictures beside a GPU. On a CPU there is nothing to hide behind: they would take cores."""
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


def _report(
    config: FGVCConfig, folder: RunFolder, best: dict[str, float], unreadable: dict[str, str], console: Console
) -> None:
    """The end of a run: what came out, where it is, what to type next."""
    parts = [f"{name.removeprefix('val/')} {value:.2f} %" for name, value in best.items() if name.startswith("val/")]
    console.print(f"\nbest epoch {best['epoch']:.0f} of {config.epochs}: {', '.join(parts)}")
    if unreadable:
        console.print(f"{len(unreadable)} pictures could not be read and were left out, such as", style="yellow")
        for path, reason in islice(unreadable.items(), SHOWN_UNREADABLE):
            console.print(f"  {path}: {reason}", style="yellow", soft_wrap=True)
    console.print(
        f"results: {folder.path}  (best.safetensors, metrics.jsonl, config.yaml, TensorBoard events)\n"
        "next:\n"
        f"  dcal eval {shlex.quote(str(folder.path))}\n"
        f"  tensorboard --logdir {shlex.quote(str(folder.path))}"
        + ("\n  python train.py --task fgvc --dataset cub --data_root DIR" if config.dataset == "toy" else ""),
        soft_wrap=True,
    )
