"""Stochastic depth of a block, sampled outside of its forward pass."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class DropPathMasks(NamedTuple):
    """Stochastic depth of a block's two residual branches: factors a row, (rows, 1, 1); 0 drops the branch."""

    attention: Tensor
    mlp: Tensor


def sample_drop_path(block: nn.Module, rows: int, device: torch.device) -> DropPathMasks | None:
    """Samples the factors of the block's own DropPath modules; None where they would be 1.

    Sampled outside of the block's forward pass, they are the same under compilation and when checkpointing recomputes
    the block; blocks that differ in the rate only share one compiled graph.
    """
    shared: Any = getattr(block, "drop_path", None)  # CaiT's blocks have one for both branches
    drop1: Any = getattr(block, "drop_path1", shared)
    drop2: Any = getattr(block, "drop_path2", shared)
    if not block.training or not getattr(drop1, "drop_prob", 0.0):
        return None
    ones = torch.ones(rows, 1, 1, device=device)
    return DropPathMasks(drop1(ones), drop2(ones))
