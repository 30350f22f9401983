"""Task-agnostic training loop; checkpoints, signals, out-of-memory retries and divergence are handled between steps.

Notable:
- everything random depends on the seed, the epoch and the number of a micro-batch or image only, so a run that is
  interrupted, or resumes on another number of ranks, computes what it would have computed;
- a checkpoint is written first, and the artifacts for users (metrics.jsonl, best.safetensors) after it.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.unreadable import UnreadableImages, allowed_unreadable
from dual_cross_attention.devices import peak_memory_mb
from dual_cross_attention.errors import InputError, InterruptedRun, TrainingDivergedError
from dual_cross_attention.progress import ProgressBar
from dual_cross_attention.tasks.data_module import pixel_stats
from dual_cross_attention.tasks.task import Task
from dual_cross_attention.training import messages
from dual_cross_attention.training.checkpointing.artifacts import RAW, is_better
from dual_cross_attention.training.checkpointing.checkpoints import read_progress
from dual_cross_attention.training.checkpointing.manager import CheckpointManager
from dual_cross_attention.training.checkpointing.restore import check_fits, restore
from dual_cross_attention.training.distributed.partition import MicroBatchPartition
from dual_cross_attention.training.distributed.requests import RankRequests, Request
from dual_cross_attention.training.distributed.strategy import on_rank_zero
from dual_cross_attention.training.divergence import EvaluationDivergedError, save_divergence
from dual_cross_attention.training.evaluation_loop import EvaluationLoop
from dual_cross_attention.training.feature_cache import cache_features
from dual_cross_attention.training.oom import MicroBatchChunks, Shortage, catch_out_of_memory
from dual_cross_attention.training.optimizers import build_schedule, peak_learning_rate
from dual_cross_attention.training.run_context import RunContext
from dual_cross_attention.training.sample_images import draw_sheet, read_first_images, write_sheet
from dual_cross_attention.training.setup import (
    build_accelerator,
    build_strategy,
    compile_if_worthwhile,
    shard_if_configured,
)
from dual_cross_attention.training.signals import SignalHandler
from dual_cross_attention.training.step import OptimizerStep
from dual_cross_attention.training.step_log import LOSS_SCALE, SHARED_LOSS, StepLog, combine, means
from dual_cross_attention.training.trackers import Trackers
from dual_cross_attention.training.train_state import TrainState

NOT_IN_METRICS = {"grad_norm", SHARED_LOSS, LOSS_SCALE}  # scalars of a step that are no columns of metrics.jsonl
GPU_LOG_INTERVAL = 10  # steps between two reads of the losses of a GPU, and of requests of other ranks


class Trainer:
    """Trains a task, and writes checkpoints, metrics and models into the run's folder.

    Args:
        task: model, losses and metrics.
        train_batches, eval_batches: of the training and the test images.
        run: settings, classes, folder and console.
        resume_from: a checkpoint; None to start.
        signals: of the whole run, if signals are caught before the training begins.

    Attributes:
        state: position of the training.

    Raises:
        InputError: `resume_from` does not fit.
    """

    def __init__(
        self,
        task: Task,
        train_batches: Batches,
        eval_batches: Batches,
        run: RunContext,
        resume_from: Path | None = None,
        signals: SignalHandler | None = None,
    ):
        config = self.config = run.config
        self.run, self.folder, self.console = run, run.folder, run.console
        self.task, self.train_batches, self.eval_batches = task, train_batches, eval_batches
        progress = read_progress(resume_from) if resume_from else None
        self.accelerator = build_accelerator(run, task)
        self.device, world_size = self.accelerator.device, self.accelerator.num_processes
        # The first start fixes the micro-batches of a step; later ones distribute them over their ranks.
        per_step = progress.batches_per_step if progress else config.gradient_accumulation_steps * world_size
        self.partition = MicroBatchPartition(len(train_batches), per_step, self.accelerator.process_index, world_size)
        self.steps_per_epoch = self.partition.steps_per_epoch
        num_images = len(train_batches.dataset)
        if progress:
            check_fits(progress, run, num_images, self.steps_per_epoch)

        shard_if_configured(run, task, self.accelerator)
        peak_lr = peak_learning_rate(config.lr, config.lr_per_512, config.batch_size * per_step)
        self.console.print(
            f"{messages.effective_batch(config.batch_size, per_step, world_size)}, peak lr {peak_lr:.3g}"
        )
        num_steps = self.steps_per_epoch * config.epochs
        if config.ema is not None and (warning := messages.long_average(config.ema, num_steps)):
            run.warn(warning)
        if memory := messages.attention_memory(task.model, config.batch_size, config.use_gradient_checkpointing):
            self.console.print(memory, markup=False)
        self.strategy = build_strategy(run, task, self.accelerator, peak_lr)
        self.optimizer = self.strategy.optimizer
        compile_if_worthwhile(run, self.strategy, self.steps_per_epoch * self.partition.per_rank * config.epochs)
        optimizer = self.strategy.plain_optimizer
        self.schedule = build_schedule(
            optimizer, self.steps_per_epoch, config.epochs, config.warmup_epochs, config.min_lr
        )

        self.step_log = StepLog(GPU_LOG_INTERVAL if self.device.type == "cuda" else 1)
        if self.accelerator.scaler:
            self.step_log.latest[LOSS_SCALE] = self.accelerator.scaler.get_scale()
        self.unreadable = UnreadableImages(run.warn, allowed_unreadable(config.max_bad_images, num_images))
        self.chunks, eval_chunks = self._build_chunks()
        self.optimizer_step = OptimizerStep(self.strategy, self.chunks, self.step_log, config.clip_grad, config.seed)
        self.signals = signals or SignalHandler()
        self.requests = RankRequests(self.strategy, self.signals)
        self.evaluation = EvaluationLoop(
            eval_batches,
            eval_chunks,
            self.requests,
            self.unreadable,
            self.step_log.interval,
            self._split_further,
            self.console,
        )
        self.trackers = Trackers(run)  # started on rank 0 only
        self.checkpoints = CheckpointManager(run, self.strategy, self.step_log, self.unreadable, per_step, num_images)
        self.state = TrainState()
        if progress:
            self.state = restore(resume_from, progress, run, self.strategy, self.step_log, self.unreadable)
            self.schedule.step_update(self.state.step)
            self.console.print(messages.resumed(self.state, self.steps_per_epoch))
            if per_step % world_size:
                run.warn(messages.uneven_ranks(per_step, world_size))
        if config.freeze == "all":
            self._cache_features()

    def _build_chunks(self) -> tuple[MicroBatchChunks, MicroBatchChunks]:
        """Chunks of training and of evaluation, as many as the rank with the smallest memory needs."""
        sampler, batch_size = self.train_batches.sampler, self.eval_batches.sampler.batch_size
        where = self.device, self.strategy.sharded
        training = MicroBatchChunks(self.config.batch_size, sampler.unit, sampler.smallest, self.folder.memory, *where)
        evaluation = MicroBatchChunks(batch_size, 1, 1, self.folder.eval_memory, *where)
        for chunks in (training, evaluation):
            chunks.count = self.strategy.all_reduce_max(chunks.count)
        return training, evaluation

    def _cache_features(self) -> None:
        """Replaces images by features of the frozen backbone, whose weights are final here."""
        if self.strategy.sharded:
            self.run.warn("--parallel fsdp: features of the frozen backbone are not cached: each step computes its own")
            return
        shared = self.strategy, self.unreadable, self.run
        self.train_batches = cache_features(self.train_batches, "features of the training images", *shared)
        self.eval_batches = cache_features(self.eval_batches, "features of the test images", *shared)
        self.evaluation.batches = self.eval_batches

    def fit(self) -> dict[str, float]:
        """Trains to the last epoch; returns the best epoch's row of metrics.jsonl.

        Raises:
            InterruptedRun: a signal came; the state is saved.
            TrainingDivergedError: a loss or a gradient is not finite; the state before that is saved.
            InputError: not even the smallest chunk fits into memory, or results cannot be written.
        """
        on_rank_zero(self._begin)
        with self.trackers, self.signals:
            try:
                while self.state.epoch < self.config.epochs:
                    row = self._train_epoch()
                    finished = self.state.epoch + 1
                    if finished == self.config.epochs or finished % self.config.eval_every == 0:
                        row |= self._evaluate()
                    self.on_epoch_end(row)
            except InterruptedRun as interruption:
                raise self._save_and_stop(interruption) from None
            except TrainingDivergedError as error:
                last = self.checkpoints.describe_last()
                saved = save_divergence(error, self.state, self.checkpoints, self.partition, self.train_batches)
                raise TrainingDivergedError(f"{error}; {last}{saved}; {messages.DIVERGED_ADVICE}") from error
            finally:
                self.train_batches.close()
                self.eval_batches.close()
                self.checkpoints.writer.wait()
        if failed := self.checkpoints.writer.failed:
            raise InputError(
                f"the training is done, but {failed}: make room, and the same command resumes from the last good "
                "checkpoint"
            )
        self.accelerator.end_training()
        return self.state.best

    def _begin(self) -> None:
        try:
            self.folder.drop_metrics_after(self.state.epoch)  # rows of an epoch that is repeated
        except OSError as error:
            raise InputError(f"cannot write '{self.folder.metrics}': {error.strerror}") from error
        self.trackers.start()
        is_augmented = self.config.freeze != "all"
        if is_augmented and self.config.sample_images and not (self.state.step or self.folder.sample_images.exists()):
            self._show_sample_images()

    def _show_sample_images(self) -> None:
        """Writes the sheet of the first training images, and sends it to the trackers; a failure is a warning."""
        where = self.train_batches, self.chunks, self.config.seed, self.device
        try:
            samples = read_first_images(self.task, *where, self.config.sample_images)
            sheet = draw_sheet(samples, pixel_stats(self.config, self.task.model), self.run.classes)
            self.trackers.log_image(self.folder.sample_images.stem, sheet)
            write_sheet(sheet, self.folder.sample_images)
        except Exception as error:  # whatever is wrong with an image, the training says
            self.run.warn(f"cannot write '{self.folder.sample_images}': {error}; the training continues without it")

    def _train_epoch(self) -> dict[str, float]:
        """Trains the rest of the epoch; returns its row so far."""
        self.task.train()
        images, start = 0, time.perf_counter()
        title = f"epoch {self.state.epoch + 1}/{self.config.epochs}"
        per_rank = self.partition.per_rank
        with ProgressBar(title, self.steps_per_epoch * per_rank, self.console) as show:

            def advance(count: int) -> None:
                nonlocal images
                images += count * self.strategy.world_size
                images_per_second = images / (time.perf_counter() - start)
                show(messages.step_status(self.step_log.latest, images_per_second, peak_memory_mb(self.device)))

            show(advance=self.state.step_in_epoch * per_rank)
            while self.state.step_in_epoch < self.steps_per_epoch:
                _, shortage = catch_out_of_memory(lambda: self._train_steps(advance))
                if shortage:
                    self._split_further(self.chunks, shortage)
        sums = combine(self.strategy.all_gather(self.step_log.sums()))
        w = {name: value for name, value in self.step_log.latest.items() if name.startswith("w_")}  # the epoch's last
        return {
            "epoch": self.state.epoch + 1,
            **{f"train/{name}": value for name, value in (means(sums) | w).items() if name not in NOT_IN_METRICS},
            "train/images_per_second": images / (time.perf_counter() - start),
            "peak_memory_mb": peak_memory_mb(self.device),
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def _train_steps(self, advance: Callable[[int], None]) -> None:
        """Runs the steps of the epoch that are not done."""
        steps = [self.partition.micro_batches_of(s) for s in range(self.state.step_in_epoch, self.steps_per_epoch)]
        batches = self._read([number for step in steps for number, _ in step])
        for micro_batches in steps:
            if self.task.begin_step(self.state.step + 1, self.steps_per_epoch * self.config.epochs):
                self.optimizer_step.defer_sync()  # other branches may take more memory
            scalars, weight = self.optimizer_step.run(self.state.epoch + 1, micro_batches, batches, advance)
            self.state.finish_step()
            self.schedule.step_update(self.state.step)
            self.step_log.add(scalars, weight)
            if self.strategy.average:
                self.strategy.average.update(self.state.step)
            self.on_step_end()

    def _read(self, numbers: list[int]) -> Iterator[dict[str, Any]]:
        batches = self.unreadable.watch(self.train_batches.read(self.state.epoch + 1, numbers))
        for _ in numbers:
            with self.requests.interruptible():  # a worker may hang for minutes
                batch = next(batches)
            yield batch

    def on_step_end(self) -> None:
        """Saves a checkpoint if one is due; raises InterruptedRun if some rank got a signal."""
        if self.strategy.world_size > 1 and self.config.checkpoint_minutes and self.state.step % self.step_log.interval:
            return  # a poll waits for the device
        if self.requests.poll(Request.SAVE if self.checkpoints.is_due() else Request.NONE) == Request.SAVE:
            self.checkpoints.save(self.state)

    def _evaluate(self) -> dict[str, float]:
        """The epoch's metrics on the test split; with an average of the weights, its own, and "_raw" ones of the
        weights themselves."""
        title = f"evaluate {self.state.epoch + 1}"
        metrics = self._evaluate_model(title)
        if not self.strategy.average:
            return metrics
        with self.strategy.average.in_use():
            averaged = self._evaluate_model(f"{title}, EMA")
        return averaged | {f"{name}{RAW}": value for name, value in metrics.items()}

    def _evaluate_model(self, title: str) -> dict[str, float]:
        # Sets the branches that predict, also for a run that resumes right before an evaluation.
        self.task.begin_step(self.state.step, self.steps_per_epoch * self.config.epochs)
        try:
            metrics = self.evaluation.run(title)
        except TrainingDivergedError as error:
            raise EvaluationDivergedError(f"{error}, after step {self.state.step}") from error
        return {f"val/{name}": metrics[name] for name in self.task.epoch_metrics if name in metrics}

    def on_epoch_end(self, row: dict[str, float]) -> None:
        """Writes the epoch's metrics, models and checkpoint.

        Args:
            row: of metrics.jsonl.
        """
        self.state.finish_epoch()
        self.step_log.start_epoch(self.state.step, latest=self.step_log.latest)
        best = is_better(row, self.state.best, f"val/{self.task.best_metric}")
        if best:
            self.state.best = row
        self.checkpoints.writer.wait()
        self.checkpoints.artifacts.add(row, best)
        self.checkpoints.save(self.state, ends_epoch=True)
        self.trackers.log(row)
        self.console.print(messages.epoch_summary(row, self.config.epochs))

    def _save_and_stop(self, interruption: InterruptedRun) -> InterruptedRun:
        """Saves a checkpoint; returns the error with the message for the user."""
        if self.state.step and not self.checkpoints.has_saved(self.state):
            self.checkpoints.save(self.state)
        self.checkpoints.writer.wait()
        self.strategy.barrier()  # so that other ranks name this checkpoint, and a launcher ends none of them early
        position = self.state, self.config.epochs, self.steps_per_epoch
        return InterruptedRun(messages.interrupted(f"{interruption}", *position, self.checkpoints.describe_last()))

    def _split_further(self, chunks: MicroBatchChunks, shortage: Shortage) -> None:
        """Halves the chunks; raises InputError if that is impossible, or other ranks do not know."""
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).empty_cache()
        last = self.checkpoints.describe_last()
        self.run.warn(chunks.double(shortage.reason, last))
        if self.strategy.world_size > 1 and not shortage.all_ranks_know:  # they wait in a step that this rank has left
            raise InputError(
                f"{shortage.reason}: the same command, or a restart by the launcher, continues with half of the images "
                f"at a time; {last}"
            )
