"""Resuming from a checkpoint: whether it fits the run, and loading it."""

from dataclasses import replace
from pathlib import Path

from dual_cross_attention.data.names import same_names
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.errors import InputError
from dual_cross_attention.training.checkpointing.checkpoints import read_state
from dual_cross_attention.training.checkpointing.train_progress import TrainProgress
from dual_cross_attention.training.distributed.strategy import DistributedStrategy
from dual_cross_attention.training.run_context import RunContext
from dual_cross_attention.training.step_log import LOSS_SCALE, StepLog
from dual_cross_attention.training.train_state import TrainState


def check_fits(progress: TrainProgress, run: RunContext, num_images: int, steps_per_epoch: int) -> None:
    """Checks whether a run can resume from a checkpoint.

    Args:
        progress: of the checkpoint.
        run: that is to resume.
        num_images: of its training data.
        steps_per_epoch: optimizer steps of its epochs.

    Raises:
        InputError: other classes or data, or the run is finished.
    """
    state, classes = progress.state, progress.classes
    if not same_names(classes, run.classes):
        raise InputError(
            f"the checkpoint knows {len(classes)} classes ({classes[0]}, …), the data has {len(run.classes)} "
            f"({run.classes[0]}, …): expected the same names in the same order"
        )
    if state.epoch >= run.config.epochs:
        raise InputError(
            f"the checkpoint is of epoch {state.epoch}, and --epochs is {run.config.epochs}: nothing to do"
        )
    if progress.num_images != num_images:
        raise InputError(
            f"the run was trained on {progress.num_images:,} images, and there are {num_images:,} now: expected the "
            "same, or the order would be another; take another --output_dir to start anew"
        )
    if state.step_in_epoch > steps_per_epoch:
        raise InputError(
            f"the checkpoint is of step {state.step_in_epoch} of an epoch, which has {steps_per_epoch}: the data has "
            "changed"
        )


def restore(
    path: Path,
    progress: TrainProgress,
    run: RunContext,
    strategy: DistributedStrategy,
    step_log: StepLog,
    unreadable: UnreadableImages,
) -> TrainState:
    """Loads a checkpoint into what is built for a run; a collective.

    Args:
        path: of the checkpoint.
        progress: its progress.
        run: that resumes.
        strategy: gets weights, optimizer state and loss scale.
        step_log: gets the scalars of the epoch so far.
        unreadable: gets the images that could not be read.

    Returns:
        The position of the training. In a new folder, no epoch is the best yet: its best model is not there.

    Raises:
        InputError: the state cannot be read, or is of another model or optimizer.
    """
    tensors = read_state(path)
    try:
        strategy.load_state_dict(tensors)
    except Exception as error:  # a state of something else can raise any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot resume from '{path}': {reason}") from error
    sums = progress.sums if strategy.rank == 0 else {}  # those of all ranks: counted once
    step_log.start_epoch(progress.state.step, sums, progress.latest)
    if scaler := strategy.accelerator.scaler:  # the checkpoint may be of another precision
        step_log.latest.setdefault(LOSS_SCALE, scaler.get_scale())
    unreadable.found.update(progress.unreadable)
    is_own = run.folder.path.resolve() in path.resolve().parents
    return replace(progress.state, best=progress.state.best if is_own and run.folder.best.is_file() else {})
