"""Checkpoints of a training: when one is due, what it contains, and the artifacts that are written after it."""

import time

from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.training.checkpointing.artifacts import ArtifactWriter
from dual_cross_attention.training.checkpointing.checkpoints import (
    CheckpointWriter,
    checkpoint_name,
    list_checkpoints,
)
from dual_cross_attention.training.checkpointing.train_progress import TrainProgress
from dual_cross_attention.training.distributed.strategy import DistributedStrategy
from dual_cross_attention.training.run_context import RunContext
from dual_cross_attention.training.step_log import StepLog, Sums, combine
from dual_cross_attention.training.train_state import TrainState


class CheckpointManager:
    """Saves checkpoints and artifacts of a run, in a thread of rank 0.

    Args:
        run: settings, classes and folder.
        strategy: task, optimizer and ranks.
        step_log: scalars of the epoch so far, saved in checkpoints.
        unreadable: images that could not be read, for the same.
        batches_per_step, num_images: see `TrainProgress`.
    """

    def __init__(
        self,
        run: RunContext,
        strategy: DistributedStrategy,
        step_log: StepLog,
        unreadable: UnreadableImages,
        batches_per_step: int,
        num_images: int,
    ):
        self.run, self.strategy, self.step_log, self.unreadable = run, strategy, step_log, unreadable
        self.batches_per_step, self.num_images = batches_per_step, num_images
        self.writer = CheckpointWriter(run.folder.checkpoints, run.warn)
        self.artifacts = ArtifactWriter(run.folder, run.config, run.classes, run.data)
        self._saved_at = time.monotonic()
        self._saved: tuple[int, int] | None = None  # epoch and step of the last checkpoint of this process

    def is_due(self) -> bool:
        """Whether the last checkpoint is `checkpoint_minutes` old; False on other ranks than 0."""
        return self.strategy.rank == 0 and time.monotonic() - self._saved_at >= 60 * self.run.config.checkpoint_minutes

    def save(self, state: TrainState, ends_epoch: bool = False) -> None:
        """Starts to write a checkpoint; a collective.

        Args:
            state: of now.
            ends_epoch: also write the artifacts of the epoch, which were added to `artifacts`.

        Raises:
            TrainingDivergedError: a loss that was not read yet is not finite.
            InputError: more images could not be read than are allowed.
        """
        for found in self.strategy.all_gather(self.unreadable.found):
            self.unreadable.merge(found)
        progress = self.progress(state, combine(self.strategy.all_gather(self.step_log.sums())))
        tensors = self.strategy.state_dict()
        self._saved_at, self._saved = time.monotonic(), (state.epoch, state.step_in_epoch)
        if self.strategy.rank == 0:
            name = checkpoint_name(state.epoch, state.step if state.step_in_epoch else None)
            best = checkpoint_name(int(state.best["epoch"])) if state.best else None
            self.writer.save(name, tensors, progress.to_json(), best, self.artifacts.write if ends_epoch else None)

    def progress(self, state: TrainState, sums: Sums) -> TrainProgress:
        """What a checkpoint of now records beside tensors.

        Args:
            state: of now.
            sums: of all ranks, see `StepLog.sums`.
        """
        return TrainProgress(
            state=state,
            batches_per_step=self.batches_per_step,
            num_images=self.num_images,
            rows=self.artifacts.rows,
            sums=sums,
            latest=dict(self.step_log.latest),
            unreadable=dict(self.unreadable.found),
            classes=self.run.classes,
        )

    def has_saved(self, state: TrainState) -> bool:
        """Whether there is a checkpoint of now."""
        if self._saved != (state.epoch, state.step_in_epoch):
            return False
        if self.strategy.world_size > 1:  # only rank 0 knows whether writing it failed, and all ranks must agree
            return True
        self.writer.wait()
        return self.writer.failed is None

    def describe_last(self) -> str:
        """A clause for messages that names the last checkpoint."""
        self.writer.wait()
        found = list_checkpoints(self.run.folder.checkpoints)
        return f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
