"""Small models of each family with parameters of order 1, and what SA, PWCA and GLCA are by timm's own code."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close

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


def assert_pwca_is_that_of_separate_passes(
    case: Case,
    checkpointing: bool,
    run_jointly: Callable[..., tuple[Tensor, Any]],
    monkeypatch: Any,
    prepare: Callable[[nn.Module], nn.Module] = lambda reference: reference,
) -> None:
    """SA is timm's own forward pass, PWCA another one with joint softmaxes; gradients are those of both passes.

    Args:
        run_jointly: `run_jointly(monkeypatch, run, distractors)` calls `run` with attention written out, over the keys
            of the image and its distractor; returns what `run` does, and something else.
        prepare: makes timm's model one whose attention `run_jointly` replaces.
    """
    model, distractors = case.create(ablation="sa_pwca").train(), torch.tensor([2, 0, 1])
    model.set_grad_checkpointing(checkpointing)
    reference, images = prepare(case.reference(model)), case.images()
    torch.manual_seed(3)  # of an augmentation of the rotary table, which Sapiens2 has: both streams have one table
    out = model(images, distractors)
    (out.logits["sa"].square().sum() + 0.5 * out.logits["pwca"].square().sum()).backward()

    torch.manual_seed(3)
    sa = reference(images)
    torch.manual_seed(3)
    pwca, _ = run_jointly(monkeypatch, lambda: reference(images), distractors)
    assert (sa - pwca).abs().max() > 1e-3
    assert_close(out.logits["sa"], sa)
    assert_close(out.logits["pwca"], pwca)
    (sa.square().sum() + 0.5 * pwca.square().sum()).backward()
    ours = {name: parameter.grad for name, parameter in model.backbone.named_parameters()}
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        tolerance = 1e-5 if name == "rope.freqs" else 1e-8  # timm computes angles in float32
        scale = max(1e-3, float(parameter.grad.abs().max()))  # of a bias before a softmax: 0, but for rounding
        assert_close(ours[name], parameter.grad, rtol=1e-6, atol=tolerance * scale)


def glca_rows(
    model: DualCrossAttentionViT, tokens: Tensor, local: Tensor, run: Callable[[nn.Module, int, Tensor], Tensor]
) -> Tensor:
    """Prefix and local tokens after GLCA's blocks, (B, prefix + n, D).

    Queries are independent of each other, so timm's block over all tokens has the rows of the local ones too.

    Args:
        tokens: (B, prefix + N, D) after the backbone's blocks.
        local: (B, n) indices of patch tokens.
        run: timm's forward pass of a block, the number of GLCA's block (from 0), and the tokens.
    """
    prefix = model.num_prefix_tokens
    asked = torch.cat([torch.arange(prefix).expand(len(tokens), -1), local + prefix], dim=1)
    index = asked[..., None].expand(-1, -1, tokens.shape[-1])
    rows = tokens
    for place, glca in enumerate(model.glca_blocks):
        rows = run(glca.block, place, tokens).gather(1, index)
        tokens = tokens.scatter(1, index, rows)
    return rows


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

SMALL_SWIN = {"embed_dim": 12, "num_heads": (1, 1, 2, 2), "depths": (1, 1, 2, 2)}
TWO_STAGES = {"embed_dim": 24, "num_heads": (2, 4), "depths": (2, 2), "window_size": 3}
NO_DROP = {"drop_path_rate": 0.0}  # timm's default of Swin is 0.1
SWIN_NAMES = ("swin_tiny_patch4_window7_224", "swin_s3_tiny_224", "swin_base_patch4_window12_384")
SWIN = [
    Case(SWIN_NAMES[0], ((224, 224), (96, 96), (128, 64)), SMALL_SWIN | NO_DROP),
    Case(SWIN_NAMES[1], ((224, 224), (96, 96), (128, 64)), SMALL_SWIN | NO_DROP),
    Case(SWIN_NAMES[0], ((24, 24), (48, 48), (56, 36)), TWO_STAGES | NO_DROP),
    Case(SWIN_NAMES[2], ((24, 24), (48, 48), (56, 36)), TWO_STAGES | NO_DROP | {"always_partition": True}),
]
"""Their attention is in windows, over stages: tests/backbones/test_swin.py."""
