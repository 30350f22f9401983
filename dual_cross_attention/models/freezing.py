"""Freezing the lower part of a backbone: its parameters are not trained, and its modules stay in evaluation mode."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from dual_cross_attention.backbones.family import BackboneFamily, Part
from dual_cross_attention.errors import InputError


class FreezableBackbone(nn.Module):
    """A model whose backbone can be frozen from below.

    Attributes:
        frozen_blocks: number of frozen blocks; with 1 or more, the stem is frozen too.
        norm_is_frozen: whether all between the last block and the head is frozen too: the norm, the pool of a pooled
            backbone, class-attention layers.
    """

    backbone: Any
    family: BackboneFamily
    frozen_blocks: int = 0
    norm_is_frozen: bool = False

    def freeze(self, blocks: int | Literal["all"]) -> None:
        """Freezes the stem and the first blocks of the backbone: no gradients, and evaluation mode also in training.

        Args:
            blocks: their number; 0: nothing is frozen. "all": all blocks and what follows them, so that only heads
                and GLCA are trained.

        Raises:
            InputError: the backbone has fewer blocks.
        """
        depth = len(self.family.blocks(self.backbone))
        if blocks != "all" and not 0 <= blocks <= depth:
            raise InputError(
                f"freeze: expected a number of the backbone's blocks, from 0 to {depth}, or all; got {blocks}"
            )
        self.frozen_blocks, self.norm_is_frozen = (depth, True) if blocks == "all" else (blocks, False)
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FreezableBackbone":
        """Training or evaluation mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen_parts():
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def _frozen_parts(self) -> Iterator[Part]:
        if self.frozen_blocks:
            yield from self.family.stem_parts(self.backbone)
            for layer in self.family.layer_parts(self.backbone)[: self.frozen_blocks]:
                yield from layer
        if self.norm_is_frozen:
            yield from self.family.final_parts(self.backbone)

    def _gradients(self, place: int) -> AbstractContextManager:
        """The context of block `place` (of the stem, of the first): without gradients, if it is frozen."""
        return torch.no_grad() if place < self.frozen_blocks else nullcontext()
