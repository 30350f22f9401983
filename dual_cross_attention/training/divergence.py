"""Non-finite gradients: updates are skipped on the device, and the state before the step is saved with a report."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.runs.run_folder import versions
from dual_cross_attention.training.checkpointing.checkpoints import put_in_place, write_checkpoint


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
