"""What happens when a gradient is not finite: weights stay as they were before it, and all that repeats it is kept."""

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


class Freeze:
    """From the first gradient on that is not finite, the optimizer does nothing.

    Reading a number from a GPU would make every step wait for it. So the device decides: fused optimizers skip a step
    at `found_inf` (made for the scaling of fp16), and here that is never taken back. Weights and optimizer are then
    still those before the very step, whenever somebody looks.

    Args:
        optimizer: a fused one.
        device: of the parameters.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device):
        self.optimizer = optimizer
        self.found = torch.zeros((), device=device)

    def look_at(self, norm: Tensor) -> None:
        """Before the optimizer's step: the norm of all gradients, a scalar; with loss scaling, the loss."""
        self.found = torch.maximum(self.found, (~norm.isfinite()).float())
        self.optimizer.found_inf = self.found

    def spoil(self, loss: Tensor) -> Tensor:
        """The loss, or NaN once something was found: the loss scaling of fp16 then skips the step by itself."""
        return loss * torch.where(self.found > 0, torch.nan, 1.0)


def save_diverged(path: Path, state: dict[str, Any], progress: dict[str, Any], report: dict[str, Any]) -> None:
    """The state before a step that diverged, as a checkpoint to resume from, with a `report.json` for people.

    Args:
        path: a folder; one that is there is replaced.
        state, progress: as of any checkpoint.
        report: step, images, settings of the moment.

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
