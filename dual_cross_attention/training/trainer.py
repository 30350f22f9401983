"""The training loop. It knows a task by its `training_step` and `evaluate`, and nothing of what the task learns.

Accelerate does devices, mixed precision, accumulation and the full-state checkpoints.
"""

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from dual_cross_attention.configs import FGVCConfig
from dual_cross_attention.data.unreadable import UnreadablePictures
from dual_cross_attention.errors import InputError
from dual_cross_attention.tasks.task import Task
from dual_cross_attention.training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint, save_model
from dual_cross_attention.training.devices import choose_device, choose_precision, peak_memory_mb
from dual_cross_attention.training.optimizers import build_optimizer, build_schedule, peak_learning_rate
from dual_cross_attention.training.run_folder import RunFolder
from dual_cross_attention.training.step_log import StepLog

GPU_LOG_INTERVAL = 10  # steps between two looks at the losses on a GPU


class Trainer:
    """Trains a task and leaves a run's folder.

    Args:
        task: model, losses and metrics.
        train_loader, eval_loader: batches as the task wants them.
        config: see `FGVCConfig`.
        classes: class names, saved with the model.
        folder: where everything goes.
        console: where progress is shown.
    """

    def __init__(
        self,
        task: Task,
        train_loader: DataLoader,
        eval_loader: DataLoader,
        config: FGVCConfig,
        classes: list[str],
        folder: RunFolder,
        console: Console,
    ):
        self.config, self.classes, self.folder, self.console = config, classes, folder, console
        device = choose_device(config.device)
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=choose_precision(config.precision, device),
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, non_blocking=True, data_seed=config.seed),
            log_with="tensorboard",
            project_dir=str(folder.path),
        )
        self.task = task
        self.updates_per_epoch = math.ceil(len(train_loader) / config.gradient_accumulation_steps)
        effective_batch = config.batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
        optimizer = build_optimizer(task, peak_learning_rate(config.lr, config.lr_per_512, effective_batch), config.weight_decay)
        self.schedule = build_schedule(optimizer, self.updates_per_epoch, config.epochs, config.warmup_epochs, config.min_lr)
        self.wrapped, self.optimizer, self.train_loader, self.eval_loader = self.accelerator.prepare(
            task, optimizer, train_loader, eval_loader
        )
        self.device = self.accelerator.device
        self.step_log = StepLog(GPU_LOG_INTERVAL if self.device.type != "cpu" else 1, self._say_last_checkpoint)
        self.unreadable = UnreadablePictures(self._warn)
        self.epoch, self.update = 0, 0  # finished ones
        self.best: dict[str, float] = {}

    def fit(self, resume_from: Path | None = None) -> dict[str, float]:
        """Train to the last epoch; returns the best epoch's row of metrics.jsonl.

        Raises:
            TrainingDivergedError: a loss is not finite.
            InputError: `resume_from` does not fit.
        """
        if resume_from:
            self._restore(load_checkpoint(self.accelerator, resume_from))
        if self.accelerator.is_main_process:
            self.accelerator.init_trackers("tensorboard")
        for epoch in range(self.epoch + 1, self.config.epochs + 1):
            row = self._train_epoch(epoch)
            if epoch % self.config.eval_every == 0 or epoch == self.config.epochs:
                row |= self._evaluate(epoch)
            self._finish_epoch(epoch, row)
        self.accelerator.end_training()
        return self.best

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        # Seeded anew for every epoch, so that a resumed run goes on as the uninterrupted one would have.
        set_seed(self.config.seed + 100_003 * epoch, device_specific=True)
        self.train_loader.set_epoch(epoch)
        self.task.train()
        self.step_log.start_epoch((epoch - 1) * len(self.train_loader))
        images, start = 0, time.perf_counter()
        with self._progress(f"epoch {epoch}/{self.config.epochs}", len(self.train_loader)) as advance:
            for batch in self.unreadable.watch(self.train_loader):
                self._step(batch)
                images += len(batch["images"]) * self.accelerator.num_processes
                advance(self._status(images / (time.perf_counter() - start)))
        means = self.step_log.means()
        w = {name: value for name, value in self.step_log.latest.items() if name.startswith("w_")}  # the epoch's last
        return {
            "epoch": epoch,
            **{f"train/{name}": value for name, value in (means | w).items()},
            "train/images_per_second": images / (time.perf_counter() - start),
            "peak_memory_mb": peak_memory_mb(self.device),
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def _step(self, batch: dict[str, Any]) -> None:
        with self.accelerator.accumulate(self.wrapped):
            losses = self.wrapped(batch)
            self.accelerator.backward(losses["loss"])
            if self.accelerator.sync_gradients and self.config.clip_grad is not None:
                norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.clip_grad)
                # fp16 overflows now and then: its scaler skips that step. Elsewhere a gradient that is not finite is the end.
                self._grad_norm = norm if self.accelerator.scaler is None else torch.zeros_like(norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.update += 1
                self.schedule.step_update(self.update)
        if self.config.clip_grad is not None:
            losses = losses | {"grad_norm": getattr(self, "_grad_norm", torch.zeros_like(losses["loss"]))}
        self.step_log.add(losses)

    def _evaluate(self, epoch: int) -> dict[str, float]:
        with self._progress(f"evaluate {epoch}", len(self.eval_loader)) as advance, self.accelerator.autocast():
            metrics = self.task.evaluate(_each(self.unreadable.watch(self.eval_loader), advance))
        return {f"val/{name}": value for name, value in metrics.items()}

    def _finish_epoch(self, epoch: int, row: dict[str, float]) -> None:
        self.epoch = epoch
        key = f"val/{self.task.best_metric}"
        is_best = key in row and row[key] > self.best.get(key, -math.inf)
        if is_best:
            self.best = row
        if self.accelerator.is_main_process:
            self.folder.append_metrics(row)
            save_model(self.folder.last, self.task.model, self.config, self.classes, row)
            if is_best:
                save_model(self.folder.best, self.task.model, self.config, self.classes, row)
        self.accelerator.log({name: value for name, value in row.items() if name != "epoch"}, step=epoch)
        save_checkpoint(
            self.accelerator, self.folder, {"epoch": epoch, "update": self.update, "best": self.best, "unreadable": self.unreadable.found}
        )
        self.console.print(_summary(row, self.config.epochs), highlight=False)

    def _restore(self, progress: dict[str, Any]) -> None:
        self.epoch, self.update, self.best = progress["epoch"], progress["update"], progress["best"]
        self.unreadable.found.update(progress["unreadable"])
        if self.epoch > self.config.epochs:
            raise InputError(f"the checkpoint is of epoch {self.epoch}, and --epochs is {self.config.epochs}")
        self.schedule.step_update(self.update)
        self.folder.drop_metrics_after(self.epoch)
        self.console.print(f"resumed after epoch {self.epoch}")

    def _status(self, images_per_second: float) -> str:
        latest = self.step_log.latest
        w = " ".join(f"{name}={latest[name]:+.3f}" for name in sorted(latest) if name.startswith("w_"))
        return f"loss {latest.get('loss', math.nan):.3f}  {images_per_second:.1f} img/s  {peak_memory_mb(self.device):.0f} MiB  {w}"

    def _progress(self, title: str, total: int) -> "_Bar":
        return _Bar(title, total, self.console, disable=not self.accelerator.is_local_main_process)

    def _say_last_checkpoint(self) -> str:
        found = list_checkpoints(self.folder)
        return f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint yet"

    def _warn(self, message: str) -> None:
        self.console.print(f"[yellow]warning[/yellow] {message}", highlight=False)


class _Bar:
    """A progress bar with a line of status; where there is no terminal, it prints nothing."""

    def __init__(self, title: str, total: int, console: Console, disable: bool):
        self.progress = Progress(
            TextColumn(title), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[status]}"),
            console=console, transient=True, disable=disable or not console.is_terminal,
        )  # fmt: skip
        self.bar = self.progress.add_task(title, total=total, status="")

    def __enter__(self):
        self.progress.start()
        return lambda status="": self.progress.update(self.bar, advance=1, status=status)

    def __exit__(self, *_):
        self.progress.stop()


def _each(batches: Iterable, advance: Any) -> Iterable:
    for batch in batches:
        yield batch
        advance()


def _summary(row: dict[str, float], epochs: int) -> str:
    parts = [f"epoch {row['epoch']:.0f}/{epochs}", f"loss {row['train/loss']:.3f}", f"train {row['train/accuracy']:.1f}%"]
    parts += [f"{name.removeprefix('val/')} {value:.2f}" for name, value in row.items() if name.startswith("val/")]
    parts += [f"{name.removeprefix('train/')} {value:+.3f}" for name, value in row.items() if name.startswith("train/w_")]
    parts += [f"{row['train/images_per_second']:.1f} img/s", f"{row['peak_memory_mb']:.0f} MiB"]
    return "  ".join(parts)
