"""Freezing the lower part of a backbone: its parameters are not trained, and its modules stay in evaluation mode."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from dual_cross_attention.errors import InputError

AFTER_STEM = {"blocks", "norm", "fc_norm", "attn_pool", "head_drop", "head", "head_dist"}
"""timm's names of the modules of a backbone that are no part of the stem."""


class FreezableBackbone(nn.Module):
    """A model whose backbone can be frozen from below.

    Attributes:
        frozen_blocks: number of frozen blocks; with 1 or more, the stem is frozen too.
        norm_is_frozen: whether the norm after the last block, and the pool of a pooled backbone, are frozen too.
    """

    backbone: Any
    frozen_blocks: int = 0
    norm_is_frozen: bool = False

    def freeze(self, blocks: int | Literal["all"]) -> None:
        """Freezes the stem and the first blocks of the backbone: no gradients, and evaluation mode also in training.

        Args:
            blocks: their number; 0: nothing is frozen. "all": all blocks and the final norm, so that only heads and
                GLCA are trained.

        Raises:
            InputError: the backbone has fewer blocks.
        """
        depth = len(self.backbone.blocks)
        if blocks != "all" and not 0 <= blocks <= depth:
            raise InputError(
                f"freeze: expected a number of the backbone's blocks, from 0 to {depth}, or all; got {blocks}"
            )
        self.frozen_blocks, self.norm_is_frozen = (depth, True) if blocks == "all" else (blocks, False)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if self.frozen_blocks:
            for parameter in self.backbone.parameters(recurse=False):  # class, register and position embeddings
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FreezableBackbone":
        """Training or evaluation mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> Iterator[nn.Module]:
        backbone = self.backbone
        if self.frozen_blocks:
            yield from (module for name, module in backbone.named_children() if name not in AFTER_STEM)
            yield from list(backbone.blocks)[: self.frozen_blocks]
        if self.norm_is_frozen:
            parts = (backbone.norm, getattr(backbone, "fc_norm", None), getattr(backbone, "attn_pool", None))
            yield from (module for module in parts if module is not None)

    def _gradients(self, place: int) -> AbstractContextManager:
        """The context of block `place` (of the stem, of the first): without gradients, if it is frozen."""
        return torch.no_grad() if place < self.frozen_blocks else nullcontext()
