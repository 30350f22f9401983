"""The training loop. It knows a task by its `training_step` and `evaluate`, and nothing of what the task learns.

Notable:
- all that is random follows from seed, epoch and the number of a micro-batch or image; so a run that was interrupted,
  or continues with another number of processes, computes what it would have computed;
- a checkpoint is the truth, and what users read (metrics.jsonl, best.safetensors) is written after it;
- a signal, a full disk, too little memory or a worker that dies is met between two steps, never within one.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from rich.console import Console

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.names import same_names
from dual_cross_attention.data.unreadable import UnreadableImages, allowed_unreadable
from dual_cross_attention.devices import choose_compile, choose_device, choose_precision, peak_memory_mb
from dual_cross_attention.errors import InputError, InterruptedRun, TrainingDivergedError
from dual_cross_attention.progress import ProgressBar, track
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.tasks.task import Task
from dual_cross_attention.training.checkpointing.artifacts import ArtifactWriter, is_better
from dual_cross_attention.training.checkpointing.checkpoints import (
    CheckpointWriter,
    checkpoint_name,
    list_checkpoints,
    read_progress,
    read_state,
)
from dual_cross_attention.training.distributed.fsdp import shard
from dual_cross_attention.training.distributed.partition import MicroBatchPartition
from dual_cross_attention.training.distributed.strategy import DistributedStrategy, ddp_options
from dual_cross_attention.training.divergence import save_diverged
from dual_cross_attention.training.oom import MicroBatchChunks, OutOfMemory, first_sentence, is_out_of_memory
from dual_cross_attention.training.optimizers import build_optimizer, build_schedule, peak_learning_rate
from dual_cross_attention.training.signals import SignalHandler
from dual_cross_attention.training.step import OptimizerStep
from dual_cross_attention.training.step_log import LOSS_SCALE, SHARED_LOSS, StepLog, combine, means

NOT_IN_METRICS = {"grad_norm", SHARED_LOSS, LOSS_SCALE}  # scalars of a step that are no columns of metrics.jsonl
GPU_LOG_INTERVAL = 10  # steps between two looks at the losses on a GPU, and at what other processes want


class Request(IntEnum):
    """What a rank asks all ranks for after a step; the largest of their requests is met by all."""

    NONE = 0
    SAVE = 1  # a checkpoint is due
    STOP = 2  # a signal came
    SPLIT = 3  # out of memory: repeat with smaller chunks


class Trainer:
    """Trains a task and leaves a run's folder.

    Args:
        task: model, losses and metrics.
        train_batches, eval_batches: batches as the task wants them.
        config: the settings of any task.
        classes: class names, saved with the model.
        folder: where everything goes.
        console: where progress is shown.
        resume_from: a checkpoint to resume from.
        signals: of the whole run, where signals are caught before the training begins.
        data: what is trained on, for the headers of models.

    Raises:
        InputError: `resume_from` does not fit.
    """

    def __init__(
        self,
        task: Task,
        train_batches: Batches,
        eval_batches: Batches,
        config: TrainingConfig,
        classes: list[str],
        folder: RunFolder,
        console: Console,
        resume_from: Path | None = None,
        signals: SignalHandler | None = None,
        data: DataFingerprint | None = None,
    ):
        self.config, self.classes, self.folder, self.console = config, classes, folder, console
        self.task, self.train_batches, self.eval_batches = task, train_batches, eval_batches
        device = choose_device(config.device)
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=choose_precision(config.precision, device, config.format_version),
            log_with="tensorboard",
            project_dir=str(folder.path),
            kwargs_handlers=[ddp_options(task.leaves_out_parameters)],
            # Else variables of the environment would compile the whole task, and divide the losses.
            dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        processes = self.accelerator.num_processes
        progress = read_progress(resume_from) if resume_from else {}
        # The first start decides what a step is; more or fewer processes only share it out.
        per_step = progress.get("batches_per_step", config.gradient_accumulation_steps * processes)
        self.partition = MicroBatchPartition(len(train_batches), per_step, self.accelerator.process_index, processes)
        self.steps_per_epoch = self.partition.steps_per_epoch

        sharded = config.parallel == "fsdp" and processes > 1
        if sharded:
            if self.accelerator.mixed_precision == "fp16":
                raise InputError("--parallel fsdp takes --precision bf16 or fp32, not fp16, which scales its losses")
            if self.accelerator.mixed_precision == "bf16" and not config.use_gradient_checkpointing:
                self._warn(
                    "in bf16, each process keeps a cast copy of all blocks' weights until the backward pass, which "
                    "--use_gradient_checkpointing true spares it"
                )
            shard(task, self.device, processes)
        peak = peak_learning_rate(config.lr, config.lr_per_512, config.batch_size * per_step)
        console.print(f"{effective_batch(config.batch_size, per_step, processes)}, peak lr {peak:.3g}")
        optimizer = build_optimizer(
            task, peak, config.weight_decay, config.optimizer, config.bias_lr_factor, config.w_lr_factor
        )
        self.strategy = DistributedStrategy(self.accelerator, task, optimizer)
        self.optimizer = self.strategy.optimizer
        compiled, why_not = choose_compile(
            config.compile, device, self.steps_per_epoch * self.partition.per_rank * config.epochs, sharded
        )
        if compiled:
            task.model.compile_blocks()
        elif why_not:
            self._warn(why_not)
        self.schedule = build_schedule(
            optimizer, self.steps_per_epoch, config.epochs, config.warmup_epochs, config.min_lr
        )

        self.step_log = StepLog(GPU_LOG_INTERVAL if self.device.type == "cuda" else 1)
        if self.accelerator.scaler:
            self.step_log.latest[LOSS_SCALE] = self.accelerator.scaler.get_scale()
        sampler = train_batches.sampler
        self.chunks = MicroBatchChunks(
            config.batch_size, sampler.unit, sampler.smallest, folder.memory, self.device, sharded
        )
        self.optimizer_step = OptimizerStep(self.strategy, self.chunks, self.step_log, config.clip_grad, config.seed)
        self.eval_chunks = MicroBatchChunks(
            eval_batches.sampler.batch_size, 1, 1, folder.eval_memory, self.device, sharded
        )
        for chunks in (self.chunks, self.eval_chunks):  # cards may differ, and the smallest decides
            chunks.count = self.strategy.all_reduce_max(chunks.count)
        allowed = allowed_unreadable(config.max_bad_images, len(train_batches.dataset))
        self.unreadable = UnreadableImages(self._warn, allowed)
        self.writer = CheckpointWriter(folder.checkpoints, self._warn)
        self.artifacts = ArtifactWriter(folder, config, classes, data)
        self.signals = signals or SignalHandler()
        self.saved_at = time.monotonic()
        self.saved: tuple[int, int] | None = None  # epoch and step of the last checkpoint of this process's life
        self.epoch, self.step, self.step_in_epoch = 0, 0, 0  # finished ones
        self.evaluating = False  # and the others can be told of what happens
        self.best: dict[str, float] = {}
        if resume_from:
            self._restore(resume_from, progress)

    def fit(self) -> dict[str, float]:
        """Train to the last epoch; returns the best epoch's row of metrics.jsonl.

        Raises:
            InterruptedRun: a signal came; the state is saved.
            TrainingDivergedError: a loss or a gradient is not finite; the state before that is saved.
            InputError: not even the smallest batch fits into memory, or what came out cannot be written.
        """
        if self.is_main:
            self._begin()
        with self.signals:
            try:
                while self.epoch < self.config.epochs:
                    row = self._train_epoch()
                    if self.epoch + 1 == self.config.epochs or (self.epoch + 1) % self.config.eval_every == 0:
                        row |= self._evaluate()
                    self._finish_epoch(row)
            except InterruptedRun as interruption:
                raise self._save_and_stop(interruption) from None
            except TrainingDivergedError as error:
                raise self._diverged(error) from error
            finally:
                self.train_batches.close()
                self.eval_batches.close()
                self.writer.wait()
        if self.writer.failed:
            raise InputError(
                f"the training is done, but {self.writer.failed}: make room, and the same command resumes from the "
                "last good checkpoint"
            )
        with self._without_tensorboard():
            self.accelerator.end_training()
        return self.best

    def _begin(self) -> None:
        try:
            self.folder.drop_metrics_after(self.epoch)  # of an epoch that was interrupted, and is done again
        except OSError as error:
            raise InputError(f"cannot write '{self.folder.metrics}': {error.strerror}") from error
        with self._without_tensorboard():
            self.accelerator.init_trackers("tensorboard")

    # --- an epoch ---

    def _train_epoch(self) -> dict[str, float]:
        """What is left of the epoch; returns its row so far."""
        self.task.train()
        images, start = [0], time.perf_counter()

        def advance_by(count: int, advance: Callable[..., None]) -> None:
            images[0] += count * self.strategy.world_size
            advance(self._status(images[0] / (time.perf_counter() - start)))

        title = f"epoch {self.epoch + 1}/{self.config.epochs}"
        with ProgressBar(title, self.steps_per_epoch * self.partition.per_rank, self.console) as advance:
            advance(advance=self.step_in_epoch * self.partition.per_rank)
            while self.step_in_epoch < self.steps_per_epoch:
                try:
                    self._train_steps(lambda count: advance_by(count, advance))
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    reason, all_know = first_sentence(error), isinstance(error, OutOfMemory)
                else:
                    break
                self._split_further(self.chunks, reason, all_know)  # here, where the failed step's tensors are gone
        found = combine(self.strategy.all_gather(self.step_log.sums()))
        w = {name: value for name, value in self.step_log.latest.items() if name.startswith("w_")}  # the epoch's last
        return {
            "epoch": self.epoch + 1,
            **{f"train/{name}": value for name, value in (means(found) | w).items() if name not in NOT_IN_METRICS},
            "train/images_per_second": images[0] / (time.perf_counter() - start),
            "peak_memory_mb": peak_memory_mb(self.device),
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def _train_steps(self, advance: Callable[[int], None]) -> None:
        """From the first step of the epoch that is not done to the last."""
        steps = range(self.step_in_epoch, self.steps_per_epoch)
        shares = [self.partition.micro_batches_of(step) for step in steps]
        numbers = [number for share in shares for number, _ in share]
        batches = self._read_training(numbers)
        for share in shares:
            if self.task.begin_step(self.step + 1, self.steps_per_epoch * self.config.epochs):
                self.optimizer_step.defer_sync()
            scalars, weight = self.optimizer_step.run(self.epoch + 1, share, batches, advance)
            self.step, self.step_in_epoch = self.step + 1, self.step_in_epoch + 1
            self.schedule.step_update(self.step)
            self.step_log.add(scalars, weight)
            self._after_step()

    def _read_training(self, numbers: list[int]) -> Iterator[dict[str, Any]]:
        batches = self.unreadable.watch(self.train_batches.read(self.epoch + 1, numbers))
        for _ in numbers:
            with self._interruptible():  # a worker may hang for minutes
                batch = next(batches)
            yield batch

    def _evaluate(self) -> dict[str, float]:
        """The epoch's metrics on the test split, every image of which one process sees."""
        epoch, batches = self.epoch + 1, len(self.eval_batches)
        # Sets the branches that predict, also for a run that resumes right before an evaluation.
        self.task.begin_step(self.step, self.steps_per_epoch * self.config.epochs)
        partition = MicroBatchPartition(batches, batches, self.strategy.rank, self.strategy.world_size)
        own = partition.micro_batches_of(0)

        def read() -> Iterator[dict[str, Any]]:
            read_ones = self.unreadable.watch(self.eval_batches.read(0, [number for number, _ in own]))
            for place, ((_, weight), batch) in enumerate(zip(own, read_ones, strict=True)):
                if not place % self.step_log.interval:
                    self._all_reduce_request()
                for part, part_weight in self.eval_chunks.split(batch):
                    # So that all make as many passes: under FSDP, they wait for each other in each of them.
                    left_out = {} if weight * part_weight else {"valid": torch.zeros_like(part["valid"])}
                    yield part | left_out
            self._all_reduce_request()
            self.evaluating = False

        while True:
            try:
                self.evaluating = True
                with self.accelerator.autocast(), self._interruptible():
                    metrics = self.task.evaluate(track(read(), f"evaluate {epoch}", len(own), self.console))
                return {f"val/{name}": metrics[name] for name in self.task.epoch_metrics if name in metrics}
            except TrainingDivergedError as error:
                raise TrainingDivergedError(f"{error}, after step {self.step}") from error
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason, all_know = first_sentence(error), isinstance(error, OutOfMemory)
            if self.evaluating and not all_know and not self.strategy.sharded:
                self.strategy.all_reduce_max(Request.SPLIT)
                all_know = True
            self._split_further(self.eval_chunks, reason, all_know)

    def _finish_epoch(self, row: dict[str, float]) -> None:
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.step_log.start_epoch(self.step, latest=self.step_log.latest)
        best = is_better(row, self.best, f"val/{self.task.best_metric}")
        if best:
            self.best = row
        self.writer.wait()
        self.artifacts.add(row, best)
        self._save(row)
        with self._without_tensorboard():
            self.accelerator.log({name: value for name, value in row.items() if name != "epoch"}, step=self.epoch)
        self.console.print(_summary(row, self.config.epochs))

    # --- what may come in between ---

    def _after_step(self) -> None:
        """After a step: leave if that was asked for, save if it is time."""
        if self.strategy.world_size > 1 and self.config.checkpoint_minutes and self.step % self.step_log.interval:
            return  # asking the others waits for the device
        due = self.is_main and time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes
        if self._all_reduce_request(Request.SAVE if due else Request.NONE) == Request.SAVE:
            self._save()

    def _all_reduce_request(self, request: Request = Request.NONE) -> int:
        """What most matters of that which the processes request, in all of them.

        Raises:
            InterruptedRun: to leave, since a signal came to one of them.
            OutOfMemory: to try again in smaller pieces, since another process has too little memory.
        """
        request = self.strategy.all_reduce_max(Request.STOP if self.signals.requested else request)
        if request == Request.STOP:
            raise InterruptedRun(self.signals.requested or "a signal to another process")
        if request == Request.SPLIT:
            raise OutOfMemory("another process has too little memory")
        return request

    def _interruptible(self) -> AbstractContextManager:
        """Within this, a signal interrupts at once, unless there are other processes, who would wait for this one."""
        return self.signals.raise_immediately() if self.strategy.world_size == 1 else nullcontext()

    def _save(self, row: dict[str, float] | None = None) -> None:
        """A checkpoint of now, written while the training continues; with a row, of a finished epoch."""
        for found in self.strategy.all_gather(self.unreadable.found):
            self.unreadable.merge(found)
        progress = self._progress(combine(self.strategy.all_gather(self.step_log.sums())))
        state = self.strategy.state_dict()
        self.saved_at, self.saved = time.monotonic(), (self.epoch, self.step_in_epoch)
        if not self.is_main:
            return
        self.writer.save(
            self._name_of_now(),
            state,
            progress,
            checkpoint_name(int(self.best["epoch"])) if self.best else None,
            self.artifacts.write if row else None,
        )

    def _failed(self) -> bool:
        self.writer.wait()
        return self.writer.failed is not None

    def _name_of_now(self) -> str:
        return checkpoint_name(self.epoch, self.step if self.step_in_epoch else None)

    def _progress(self, sums: dict[str, tuple[float, float]]) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "batches_per_step": self.partition.per_step,
            "pictures": len(self.train_batches.dataset),
            "best": self.best,
            "rows": self.artifacts.rows,
            "log": {"sums": sums, "latest": self.step_log.latest},
            "unreadable": dict(self.unreadable.found),
            "classes": self.classes,
        }

    def _restore(self, path: Path, progress: dict[str, Any]) -> None:
        if not same_names(progress["classes"], self.classes):
            raise InputError(
                f"the checkpoint knows {len(progress['classes'])} classes ({progress['classes'][0]}, …), the data has "
                f"{len(self.classes)} ({self.classes[0]}, …): expected the same names in the same order"
            )
        if progress["epoch"] >= self.config.epochs:
            raise InputError(
                f"the checkpoint is of epoch {progress['epoch']}, and --epochs is {self.config.epochs}: nothing to do"
            )
        num_images = len(self.train_batches.dataset)
        if progress["pictures"] != num_images:
            raise InputError(
                f"the run was trained on {progress['pictures']:,} images, and there are {num_images:,} now: expected "
                "the same, or the order would be another; take another --output_dir to start anew"
            )
        if progress["step_in_epoch"] > self.steps_per_epoch:
            raise InputError(
                f"the checkpoint is of step {progress['step_in_epoch']} of an epoch, which has {self.steps_per_epoch}: "
                "the data has changed"
            )
        state = read_state(path)
        try:
            self.strategy.load_state_dict(state)
        except Exception as error:  # what a state of something else raises is not limited to any list of types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"cannot resume from '{path}': {reason}") from error
        self.epoch, self.step, self.step_in_epoch = (progress[name] for name in ("epoch", "step", "step_in_epoch"))
        own = self.folder.path.resolve() in path.resolve().parents  # a new folder gets a best model of its own
        self.best = progress["best"] if own and self.folder.best.is_file() else {}
        log = progress["log"] if self.is_main else {"sums": {}, "latest": progress["log"]["latest"]}
        self.step_log.start_epoch(self.step, **log)
        if self.accelerator.scaler:  # a run may continue with another precision
            self.step_log.latest.setdefault(LOSS_SCALE, self.accelerator.scaler.get_scale())
        self.unreadable.found.update(progress["unreadable"])
        self.schedule.step_update(self.step)
        at = f", step {self.step_in_epoch} of {self.steps_per_epoch}" if self.step_in_epoch else ""
        self.console.print(f"resumed after epoch {self.epoch}{at}")
        if self.partition.per_step % self.strategy.world_size:
            self._warn(
                f"a step has {self.partition.per_step} micro-batches, as when the run began: "
                f"{self.strategy.world_size} ranks cannot split them evenly, so some wait for others"
            )

    def _save_and_stop(self, interruption: InterruptedRun) -> InterruptedRun:
        """Saves what there is; returns what the user is to be told."""
        # With several processes, a look at the disk could tell each of them something else.
        saved = self.saved == (self.epoch, self.step_in_epoch) and not (
            self.strategy.world_size == 1 and self._failed()
        )
        if self.step and not saved:
            self._save()
        self.writer.wait()
        self.strategy.barrier()
        return InterruptedRun(
            f"{interruption}: left at epoch {self.epoch + 1} of {self.config.epochs}, step {self.step_in_epoch} of "
            f"{self.steps_per_epoch}; {self._last_checkpoint()}; the same command resumes from there"
        )

    def _diverged(self, error: TrainingDivergedError) -> TrainingDivergedError:
        """Saves what repeats the step that diverged; returns what the user is to be told."""
        said = f"{error}; {self._last_checkpoint()}"
        first_of_epoch = self.step - self.step_in_epoch
        diverged = self.step_log.step - first_of_epoch  # the step within the epoch, counted from 1
        if self.step and 0 < diverged <= self.steps_per_epoch and "evaluation" not in str(error):
            state = self.strategy.state_dict()
            if not self.is_main:
                self.strategy.barrier()
                return TrainingDivergedError(said)
            if state["scaler"]:  # which has halved the scale since then
                state["scaler"]["scale"] = self.step_log.latest[LOSS_SCALE]
            numbers = self.partition.of_all_ranks(diverged - 1)
            progress = self._progress({}) | {"step": self.step_log.step - 1, "step_in_epoch": diverged - 1}
            report = {
                "what": str(error),
                "epoch": self.epoch + 1,
                "step": self.step_log.step,
                "micro_batches": numbers,
                "pictures": self.train_batches.image_names(self.epoch + 1, numbers),
                "lr": self.optimizer.param_groups[0]["lr"],
                "precision": self.accelerator.mixed_precision,
            }
            try:
                save_diverged(self.folder.diverged, state, progress, report)
                said += (
                    f"; '{self.folder.diverged}' has the state before that step, and its images: --resume "
                    f"{self.folder.diverged} --output_dir OTHER repeats it"
                )
            except OSError as failed:
                self._warn(f"cannot write '{self.folder.diverged}': {failed}")
            self.strategy.barrier()
        advice = "a lower --lr, a warm-up (--warmup_epochs 5), or --precision bf16 or fp32 may help"
        return TrainingDivergedError(f"{said}; {advice}")

    def _split_further(self, chunks: MicroBatchChunks, reason: str, all_know: bool) -> None:
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).empty_cache()
        self._warn(chunks.double(reason, self._last_checkpoint()))
        if self.strategy.world_size > 1 and not all_know:  # they wait in a step that this one cannot join again
            raise InputError(
                f"{reason}: the same command, or a restart by the launcher, continues with half of the images at a "
                f"time; {self._last_checkpoint()}"
            )

    # --- what is said ---

    def _last_checkpoint(self) -> str:
        self.writer.wait()
        found = list_checkpoints(self.folder.checkpoints)
        return f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint yet"

    @contextmanager
    def _without_tensorboard(self) -> Iterator[None]:
        """Its events are no reason to end a run."""
        try:
            yield
        except OSError as error:
            self._warn(f"cannot write TensorBoard's events: {error}; the run continues")

    def _warn(self, message: str) -> None:
        self.console.print(f"warning: {message}", style="yellow")

    def _status(self, images_per_second: float) -> str:
        latest = self.step_log.latest
        w = " ".join(f"{name}={latest[name]:+.3f}" for name in sorted(latest) if name.startswith("w_"))
        loss, memory = latest.get("loss", math.nan), peak_memory_mb(self.device)
        return f"loss {loss:.3f}  {images_per_second:.1f} img/s  {memory:.0f} MiB  {w}"


def effective_batch(batch_size: int, per_step: int, world_size: int) -> str:
    """Images of an optimizer step, and what they are the product of."""
    ranks = f"{world_size} rank{'s'[: world_size > 1]}"
    if per_step % world_size:  # of a run that resumes on another number of ranks
        factors = f"{per_step} micro-batches × {batch_size}, on {ranks}"
    else:
        accumulation = per_step // world_size
        factors = f"{ranks} × {batch_size} × {accumulation} accumulation step{'s'[: accumulation > 1]}"
    return f"effective batch size {batch_size * per_step} ({factors})"


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
