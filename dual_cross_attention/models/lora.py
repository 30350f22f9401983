"""LoRA: frozen weights W of linear layers with a trained low-rank part, W + B·A.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1.

Notable:
- the part is added by torch's parametrization of `weight`, not by a module around the layer as in the library peft:
  PWCA, the last block and GLCA read slices of `qkv.weight`, which would be W alone, without an error. A parametrized
  `weight` is W + B·A wherever it is read;
- B starts at 0, so the model starts as the one without LoRA. The scale (alpha / rank) is 1;
- saved models are merged: their weights are W + B·A, under the names of a model without LoRA.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dual_cross_attention.errors import InputError
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT

_PART = ".parametrizations.weight."


class LowRankUpdate(nn.Module):
    """W → W + B·A, in the precision of the parameters.

    Args:
        weight: W, (out, in).
        rank: R; A is (R, in), B is (out, R).
    """

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        out_features, in_features = weight.shape
        self.a = nn.Parameter(weight.detach().new_empty(rank, in_features))
        self.b = nn.Parameter(weight.detach().new_zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return low_rank_sum(weight, self.a, self.b)


def low_rank_sum(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W + B·A."""
    return weight + b @ a


def add_lora(model: DualCrossAttentionViT, rank: int, in_glca: bool) -> None:
    """Freezes the backbone except for its head, and adds LoRA to all linear layers of its blocks, in place.

    SA and PWCA share these blocks. Blocks that are frozen already (`DualCrossAttentionViT.freeze`) get none.

    Args:
        model: with its initial weights, or before those of a checkpoint are loaded.
        rank: R, at least 1.
        in_glca: GLCA's blocks are copies of trained blocks: they are frozen and get LoRA too. Otherwise they are
            trained in full.

    Raises:
        InputError: a rank that a layer does not have.
    """
    heads = {id(parameter) for head in _heads(model) for parameter in head.parameters()}
    for parameter in model.backbone.parameters():
        if id(parameter) not in heads:
            parameter.requires_grad_(False)
    blocks = list(model.family.blocks(model.backbone))[model.frozen_blocks :]
    if not model.norm_is_frozen:
        blocks += model.family.final_blocks(model.backbone)
    for block in [*blocks, *(each.block for each in (model.glca_blocks if in_glca else []))]:
        block.requires_grad_(False)
        for layer in model.family.low_rank_layers(block):
            most = min(layer.weight.shape)
            if not 1 <= rank <= most:
                raise InputError(f"lora_rank: expected a rank from 1 to {most}, that of the smallest layer; got {rank}")
            parametrize.register_parametrization(layer, "weight", LowRankUpdate(layer.weight, rank))
    model.train(model.training)  # batch norms of the stem are frozen now


def _heads(model: DualCrossAttentionViT) -> Iterator[nn.Module]:
    """The classifiers of the backbone: one, or two of a distilled model."""
    found = model.backbone.get_classifier()
    yield from found if isinstance(found, tuple) else (found,)


def merge_lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's state dict with W + B·A in place of W, A and B; without LoRA, it is as it was."""
    merged = {}
    for name, value in state.items():
        layer, _, part = name.partition(_PART)
        if not part:
            merged[name] = value
        elif part == "original":
            merged[f"{layer}.weight"] = low_rank_sum(value, *(state[f"{layer}{_PART}0.{each}"] for each in "ab"))
    return merged
