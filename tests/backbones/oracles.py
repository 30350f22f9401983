"""Small models of each family with layer scales, norms and biases of order 1, and timm's own forward pass."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor

from dual_cross_attention import create_model
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT

SMALL = {"embed_dim": 48, "num_heads": 3, "depth": 3}


@dataclass(frozen=True)
class Case:
    """A timm model made small, and three input sizes: one that it was trained at, another one, a rectangle."""

    name: str
    sizes: tuple[tuple[int, int], ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(str(self.kwargs[key]) for key in self.kwargs if key not in SMALL)])

    def create(self, size: int = -1, **options: Any) -> DualCrossAttentionViT:
        """The DCAL model at one of the sizes, in double precision, with random weights of order 1."""
        torch.manual_seed(0)
        options = {"img_size": self.sizes[size], "local_ratio": 0.3, **self.kwargs, **options}
        return randomize(create_model(self.name, 5, **options).double())

    def reference(self, model: DualCrossAttentionViT, size: int = -1) -> torch.nn.Module:
        """timm's own model with the same weights."""
        made = timm.create_model(self.name, num_classes=5, img_size=self.sizes[size], **self.kwargs).double()
        made.load_state_dict(model.backbone.state_dict())  # timm's own names, strict
        return made.train(model.training)

    def images(self, size: int = -1, batch: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, 3, *self.sizes[size], generator=generator, dtype=torch.float64)


def randomize(model: DualCrossAttentionViT) -> DualCrossAttentionViT:
    """Layer scales, norms, biases and tokens of order 1: at 1e-5, SA would equal timm whatever the attention does."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            of_stem = name.startswith("backbone.patch_embed.backbone.")
            if parameter.ndim > 1 and not name.endswith(("token", "latent", "pos_embed")):
                parameter += (0.02 if of_stem else 2 / parameter.shape[-1] ** 0.5) * noise
            else:
                parameter += 0.5 * noise
                if "gamma" in name or name.endswith("weight"):
                    parameter += 0.5  # layer scales of 0.5 or more on average
    return model


class Attention:
    """Stands in for fused attention: records queries and keys, and computes with explicit softmaxes.

    Args:
        distractors: (B,) whose keys and values join in self-attention; None: the image's own alone.
    """

    def __init__(self, distractors: Tensor | None = None):
        self.distractors = distractors
        self.layers: list[tuple[Tensor, Tensor]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        self.layers.append((query.detach(), key.detach()))
        if self.distractors is not None and query.shape[2] == key.shape[2]:  # not a pool's query
            key = torch.cat([key, key[self.distractors]], dim=2)
            value = torch.cat([value, value[self.distractors]], dim=2)
        return weights(query, key) @ value


def weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(QKᵀ/√d), written out."""
    scores = torch.einsum("bhnd,bhmd->bhnm", query, key) / query.shape[-1] ** 0.5
    scores = torch.exp(scores - scores.amax(-1, keepdim=True))
    return scores / scores.sum(-1, keepdim=True)


def run_timm(
    monkeypatch: Any, run: Callable[[], Tensor], distractors: Tensor | None = None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """What timm's own code gives, and queries and keys of each attention in it."""
    attention = Attention(distractors)
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
        return run(), attention.layers


EVA = [
    Case("eva02_tiny_patch14_224", ((224, 224), (56, 56), (42, 70)), SMALL),
    Case("eva02_base_patch14_448", ((448, 448), (56, 56), (42, 70)), SMALL | {"depth": 2}),
    Case("eva02_base_patch16_clip_224", ((224, 224), (64, 64), (48, 80)), SMALL),
    Case("vit_small_patch16_dinov3", ((256, 256), (64, 64), (48, 80)), SMALL),
    Case("vit_small_patch16_dinov3_qkvb", ((256, 256), (64, 64), (48, 80)), SMALL | {"global_pool": "token"}),
    Case("vit_small_patch16_rope_mixed_ape_224", ((224, 224), (64, 64), (48, 80)), SMALL),
    Case("vit_small_patch16_rope_224", ((224, 224), (64, 64), (48, 80)), SMALL),
    Case("vit_pe_core_tiny_patch16_384", ((384, 384), (64, 64), (48, 80)), SMALL),
    Case("vit_medium_patch16_rope_reg1_gap_256", ((256, 256), (64, 64), (48, 80)), SMALL),
    Case("eva02_enormous_patch14_clip_224", ((224, 224), (56, 56), (42, 70)), SMALL),
    Case("vit_base_patch16_sapiens2", ((128, 96), (64, 64), (48, 80)), SMALL | {"num_kv_heads": (1, 3, 3)}),
]
POOLED = [
    Case("vit_base_patch16_siglip_224", ((224, 224), (64, 64), (48, 80)), SMALL),
    Case("vit_so150m_patch16_reg4_map_256", ((256, 256), (64, 64), (48, 80)), SMALL),
    Case("vit_medium_patch16_reg4_gap_256", ((256, 256), (64, 64), (48, 80)), SMALL),
    Case("vit_base_patch16_gap_224", ((224, 224), (64, 64), (48, 80)), SMALL),
    Case("beit3_base_patch16_224", ((224, 224), (64, 64), (48, 80)), SMALL),
    Case("aimv2_large_patch14_224", ((224, 224), (56, 56), (42, 70)), SMALL | {"mlp_ratio": 2.0}),
]
HYBRID = [
    Case("vit_base_r50_s16_224", ((224, 224), (64, 64), (48, 80)), SMALL | {"depth": 2}),
    Case("vit_small_r26_s32_224", ((224, 224), (64, 64), (64, 96)), SMALL | {"depth": 2}),
    Case("vit_tiny_r_s16_p8_224", ((224, 224), (64, 64), (64, 96)), SMALL | {"depth": 2}),
]
PLAIN = [
    Case("vit_tiny_patch16_224", ((224, 224), (64, 64), (48, 80)), SMALL),
    Case("vit_small_patch14_reg4_dinov2", ((518, 518), (56, 56), (42, 70)), SMALL | {"depth": 2}),
]
CASES = [*PLAIN, *EVA, *POOLED, *HYBRID]

CAIT = [
    Case("cait_xxs24_224", ((224, 224), (64, 64), (48, 80)), SMALL),
    Case("cait_xs24_384", ((384, 384), (64, 64), (48, 80)), SMALL | {"depth": 2, "depth_token_only": 3}),
]
"""Their blocks have no class token and mix heads: tests/backbones/test_cait.py."""
