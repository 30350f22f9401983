"""Keeps the loss weights w of branches that a step leaves out."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from dual_cross_attention.losses import UncertaintyWeighting


def hold_absent_weights(optimizer: Optimizer, weighting: UncertaintyWeighting) -> None:
    """Keeps w of the branches without a loss in the last forward pass, by hooks around every optimizer step.

    All w are one parameter. The gradient of those left out is 0, but AdamW's moments and SGD's momentum of earlier
    gradients would still move them.

    Args:
        optimizer: of w, among others.
        weighting: its w may be split over ranks by FSDP.
    """
    before: list[Tensor] = []

    def keep(*_: object) -> None:
        if weighting.absent:
            before.append(_own_part(weighting.w).clone())

    def restore(*_: object) -> None:
        if before:
            own, kept = _own_part(weighting.w), before.pop()
            for place, branch in enumerate(_own_branches(weighting)):
                if branch in weighting.absent:
                    own[place].copy_(kept[place])

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(restore)


def _own_part(w: Tensor) -> Tensor:
    """This rank's shard of w, as a view."""
    w = w.detach()
    return w.to_local() if isinstance(w, DTensor) else w


def _own_branches(weighting: UncertaintyWeighting) -> tuple[str, ...]:
    """The branches whose w is in this rank's shard; FSDP splits the first dimension as `torch.chunk` does."""
    if not isinstance(weighting.w, DTensor):
        return weighting.branches
    mesh = weighting.w.device_mesh
    chunks = torch.arange(len(weighting.branches)).chunk(mesh.size())
    rank = mesh.get_local_rank()
    return tuple(weighting.branches[place] for place in chunks[rank].tolist()) if rank < len(chunks) else ()
