"""Non-finite gradients: updates are skipped on the device, and the state before the step is saved with a report."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.errors import TrainingDivergedError
from dual_cross_attention.runs.run_folder import versions
from dual_cross_attention.training.checkpointing.checkpoints import put_in_place, write_checkpoint
from dual_cross_attention.training.checkpointing.manager import CheckpointManager
from dual_cross_attention.training.distributed.partition import MicroBatchPartition
from dual_cross_attention.training.step_log import LOSS_SCALE
from dual_cross_attention.training.train_state import TrainState


class NonFiniteGuard:
    """Latches `found_inf` on the device: a fused optimizer skips every update after the first non-finite gradient.

    No value is read on the host, so a step does not synchronize with the GPU. Fused optimizers skip a step where
    `found_inf` is set (an interface made for fp16 loss scaling); here it is never reset. Weights and optimizer state
    therefore stay as before the step that diverged, however much later the host reads the losses.

    Args:
        optimizer: a fused one.
        device: of the parameters.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device):
        self.optimizer = optimizer
        self.found_inf = torch.zeros((), device=device)

    def update(self, value: Tensor) -> None:
        """Latches `found_inf` if a scalar is not finite; call before the optimizer's step.

        Args:
            value: the norm of all gradients; with loss scaling, the loss.
        """
        self.found_inf = torch.maximum(self.found_inf, (~value.isfinite()).float())
        self.optimizer.found_inf = self.found_inf

    def mask_loss(self, loss: Tensor) -> Tensor:
        """The loss, or NaN once `found_inf` is latched, so that fp16's GradScaler skips the step."""
        return loss * torch.where(self.found_inf > 0, torch.nan, 1.0)


class EvaluationDivergedError(TrainingDivergedError):
    """An output of the model is not finite in an evaluation, so no step is known that diverged."""


def save_divergence(
    error: TrainingDivergedError,
    state: TrainState,
    checkpoints: CheckpointManager,
    partition: MicroBatchPartition,
    batches: Batches,
) -> str:
    """Saves the state before the step that diverged, and a report with its images; a collective.

    Args:
        error: what diverged; `checkpoints.step_log` has the step.
        state: position of the training, which may be some steps later.
        checkpoints: of the run.
        partition, batches: of the training, for the names of the images.

    Returns:
        A clause for the error message, on rank 0; "" if nothing was saved.
    """
    run, strategy, step_log = checkpoints.run, checkpoints.strategy, checkpoints.step_log
    step_in_epoch = step_log.step - (state.step - state.step_in_epoch)  # that diverged, counted from 1
    if isinstance(error, EvaluationDivergedError) or not state.step:
        return ""
    if not 0 < step_in_epoch <= partition.steps_per_epoch:
        return ""
    said = ""
    tensors = strategy.state_dict()
    if strategy.rank == 0:
        if tensors["scaler"]:  # it has halved the scale since then
            tensors["scaler"]["scale"] = step_log.latest[LOSS_SCALE]
        before = replace(state, step=step_log.step - 1, step_in_epoch=step_in_epoch - 1)
        numbers = partition.of_all_ranks(step_in_epoch - 1)
        report = {
            "what": str(error),
            "epoch": state.epoch + 1,
            "step": step_log.step,
            "micro_batches": numbers,
            "pictures": batches.image_names(state.epoch + 1, numbers),
            "lr": strategy.optimizer.param_groups[0]["lr"],
            "precision": strategy.accelerator.mixed_precision,
        }
        path = run.folder.diverged
        try:
            save_diverged(path, tensors, checkpoints.progress(before, {}).to_json(), report)
            said = (
                f"; '{path}' has the state before that step, and its images: --resume {path} --output_dir OTHER "
                "repeats it"
            )
        except OSError as failed:
            run.warn(f"cannot write '{path}': {failed}")
    strategy.barrier()
    return said


def save_diverged(path: Path, state: dict[str, Any], progress: dict[str, Any], report: dict[str, Any]) -> None:
    """Writes the state before a step that diverged, as a checkpoint to resume from, with a `report.json`.

    Args:
        path: a folder; an existing one is replaced.
        state, progress: as of any checkpoint.
        report: step, images and settings at that step.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    on_cpu = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), state)
    write_checkpoint(temporary, on_cpu, progress)
    (temporary / "report.json").write_text(
        json.dumps({"format_version": FORMAT_VERSION} | report | {"versions": versions()}, indent=1) + "\n"
    )
    put_in_place(temporary, path)
