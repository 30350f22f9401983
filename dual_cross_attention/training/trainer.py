"""The training loop. It knows a task by its `training_step` and `evaluate`, and nothing of what the task learns.

Accelerate does devices, mixed precision, accumulation and the full-state checkpoints.
"""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from rich.console import Console
from torch.utils.data import DataLoader

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.data.unreadable import UnreadablePictures
from dual_cross_attention.errors import InputError, TrainingDivergedError
from dual_cross_attention.tasks.task import Task
from dual_cross_attention.training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint, save_model
from dual_cross_attention.training.devices import choose_compile, choose_device, choose_precision, peak_memory_mb
from dual_cross_attention.training.optimizers import build_optimizer, build_schedule, peak_learning_rate
from dual_cross_attention.training.progress import ProgressBar, track
from dual_cross_attention.training.run_folder import RunFolder
from dual_cross_attention.training.step_log import StepLog

GPU_LOG_INTERVAL = 10  # steps between two looks at the losses on a GPU


class Trainer:
    """Trains a task and leaves a run's folder.

    Args:
        task: model, losses and metrics.
        train_loader, eval_loader: batches as the task wants them.
        config: the settings of any task.
        classes: class names, saved with the model.
        folder: where everything goes.
        console: where progress is shown.
    """

    def __init__(
        self,
        task: Task,
        train_loader: DataLoader,
        eval_loader: DataLoader,
        config: TrainingConfig,
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
            dataloader_config=DataLoaderConfiguration(
                use_seedable_sampler=True, non_blocking=True, data_seed=config.seed
            ),
            log_with="tensorboard",
            project_dir=str(folder.path),
        )
        self.task = task
        effective_batch = config.batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
        peak = peak_learning_rate(config.lr, config.lr_per_512, effective_batch)
        optimizer = build_optimizer(
            task, peak, config.weight_decay, config.optimizer, config.bias_lr_factor, config.w_lr_factor
        )
        # Accelerate sets the epoch of what it wraps only in some cases, so it is set where it matters.
        self.has_epochs = [part for part in (train_loader.dataset, train_loader.sampler) if hasattr(part, "set_epoch")]
        self.wrapped, self.optimizer, self.train_loader = self.accelerator.prepare(task, optimizer, train_loader)
        self.accelerator.even_batches = False  # made even among processes, some test pictures would count twice
        self.eval_loader = self.accelerator.prepare(eval_loader)
        # Counted after `prepare`, which shares the batches out among the processes.
        updates_per_epoch = math.ceil(len(self.train_loader) / config.gradient_accumulation_steps)
        compiled, why_not = choose_compile(config.compile, device, len(self.train_loader) * config.epochs)
        if compiled:
            task.model.compile_blocks()
        elif why_not:
            console.print(f"warning: {why_not}", style="yellow")
        self.schedule = build_schedule(optimizer, updates_per_epoch, config.epochs, config.warmup_epochs, config.min_lr)
        self.device = self.accelerator.device
        self.step_log = StepLog(GPU_LOG_INTERVAL if self.device.type != "cpu" else 1, partial(_last_checkpoint, folder))
        self.unreadable = UnreadablePictures(lambda message: console.print(f"warning: {message}", style="yellow"))
        self.epoch, self.update = 0, 0  # finished ones
        self.best: dict[str, float] = {}

    def fit(self, resume_from: Path | None = None) -> dict[str, float]:
        """Train to the last epoch; returns the best epoch's row of metrics.jsonl.

        Raises:
            TrainingDivergedError: a loss is not finite.
            InputError: `resume_from` does not fit, or the batch does not fit into the GPU's memory.
        """
        if resume_from:
            self._restore(load_checkpoint(self.accelerator, resume_from))
        if self.accelerator.is_main_process:
            self.folder.drop_metrics_after(self.epoch)  # of an epoch that was interrupted, and is done again
            self.accelerator.init_trackers("tensorboard")
        try:
            for epoch in range(self.epoch + 1, self.config.epochs + 1):
                row = self._train_epoch(epoch)
                if epoch % self.config.eval_every == 0 or epoch == self.config.epochs:
                    row |= self._evaluate(epoch)
                self._finish_epoch(epoch, row)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"out of GPU memory at batch_size {self.config.batch_size} ({str(error).partition('. ')[0]}): try a "
                "smaller one with more --gradient_accumulation_steps, --use_gradient_checkpointing true, or "
                f"--ablation sa_glca; {_last_checkpoint(self.folder)}"
            ) from error
        self.accelerator.end_training()
        return self.best

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        # Seeded anew for every epoch, so that a resumed run goes on as the uninterrupted one would have.
        set_seed(self.config.seed + 100_003 * epoch, device_specific=True)
        self.train_loader.set_epoch(epoch)
        for part in self.has_epochs:
            part.set_epoch(epoch)
        self.task.train()
        self.step_log.start_epoch((epoch - 1) * len(self.train_loader))
        images, start = 0, time.perf_counter()
        title = f"epoch {epoch}/{self.config.epochs}"
        with ProgressBar(title, len(self.train_loader), self.console) as advance:
            for batch in self.unreadable.watch(self.train_loader):
                self._step(batch)
                images += len(batch["images"]) * self.accelerator.num_processes
                advance(self._status(images / (time.perf_counter() - start)))
        means = self.step_log.means()
        w = {name: value for name, value in self.step_log.latest.items() if name.startswith("w_")}  # the epoch's last
        return {
            "epoch": epoch,
            **{f"train/{name}": value for name, value in (means | w).items() if name != "grad_norm"},
            "train/images_per_second": images / (time.perf_counter() - start),
            "peak_memory_mb": peak_memory_mb(self.device),
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def _step(self, batch: dict[str, Any]) -> None:
        with self.accelerator.accumulate(self.wrapped):
            scalars = self.wrapped(batch)
            self.accelerator.backward(scalars["loss"])
            if self.accelerator.sync_gradients:
                limit = math.inf if self.config.clip_grad is None else self.config.clip_grad
                norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), limit)
                # fp16 overflows now and then, and its scaler skips that step. Elsewhere a gradient that is not finite
                # would poison the weights: the log sees it before anything is saved.
                if self.accelerator.scaler is None:
                    scalars = scalars | {"grad_norm": norm}
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.update += 1
                self.schedule.step_update(self.update)
        self.step_log.add(scalars)

    def _evaluate(self, epoch: int) -> dict[str, float]:
        batches = self.unreadable.watch(self.eval_loader)
        try:
            with self.accelerator.autocast():
                metrics = self.task.evaluate(track(batches, f"evaluate {epoch}", len(self.eval_loader), self.console))
        except TrainingDivergedError as error:
            said = f"{error}, after step {self.step_log.step}; {_last_checkpoint(self.folder)}"
            raise TrainingDivergedError(said) from error
        return {f"val/{name}": metrics[name] for name in self.task.epoch_metrics if name in metrics}

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
        progress = {
            "epoch": epoch,
            "update": self.update,
            "best": self.best,
            "unreadable": self.unreadable.found,
            "classes": self.classes,
        }
        save_checkpoint(self.accelerator, self.folder, progress)
        self.console.print(_summary(row, self.config.epochs))

    def _restore(self, progress: dict[str, Any]) -> None:
        if progress["classes"] != self.classes:
            raise InputError(
                f"the checkpoint knows {len(progress['classes'])} classes ({progress['classes'][0]}, …), the data has "
                f"{len(self.classes)} ({self.classes[0]}, …): expected the same names in the same order"
            )
        self.epoch, self.update = progress["epoch"], progress["update"]
        if self.epoch >= self.config.epochs:
            raise InputError(
                f"the checkpoint is of epoch {self.epoch}, and --epochs is {self.config.epochs}: nothing to do"
            )
        self.best = progress["best"] if self.folder.best.is_file() else {}  # a new folder gets a best model of its own
        self.unreadable.found.update(progress["unreadable"])
        self.schedule.step_update(self.update)
        self.console.print(f"resumed after epoch {self.epoch}")

    def _status(self, images_per_second: float) -> str:
        latest = self.step_log.latest
        w = " ".join(f"{name}={latest[name]:+.3f}" for name in sorted(latest) if name.startswith("w_"))
        loss, memory = latest.get("loss", math.nan), peak_memory_mb(self.device)
        return f"loss {loss:.3f}  {images_per_second:.1f} img/s  {memory:.0f} MiB  {w}"


def _last_checkpoint(folder: RunFolder) -> str:
    found = list_checkpoints(folder)
    return f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint yet"


def _summary(row: dict[str, float], epochs: int) -> str:
    parts = [
        f"epoch {row['epoch']:.0f}/{epochs}",
        f"loss {row['train/loss']:.3f}",
        f"train {row['train/accuracy']:.1f}%",
    ]
    parts += [f"{name.removeprefix('val/')} {value:.2f}" for name, value in row.items() if name.startswith("val/")]
    parts += [f"{name.removeprefix('train/')} {row[name]:+.3f}" for name in row if name.startswith("train/w_")]
    parts += [f"{row['train/images_per_second']:.1f} img/s", f"{row['peak_memory_mb']:.0f} MiB"]
    return "  ".join(parts)
