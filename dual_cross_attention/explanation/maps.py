"""Attention maps of a batch of images: rollout, the local tokens, GLCA's attention, and CLS's attention by layer."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from dual_cross_attention.attention.rollout import AttentionLayer, row_times_layer
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.attention_trace import AttentionTrace
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.models.glca import rollout_of

MapName = Literal["rollout", "glca", "product", "gradient"]
MAP_NAMES: tuple[MapName, ...] = get_args(MapName)
MAP_TITLES: dict[str, str] = {
    "rollout": "attention rollout (SA)",
    "glca": "GLCA's attention",
    "product": "rollout × GLCA's attention",
    "gradient": "gradient × rollout",
}
"""Names for people."""


def default_map(has_glca: bool) -> MapName:
    """The most faithful map without a backward pass, by deletion and insertion on CUB: docs/explanation.md."""
    return "product" if has_glca else "rollout"


@dataclass
class AttentionMaps:
    """Attention maps of B images over a grid of h × w patches, and the logits of the same forward pass.

    Args:
        rollout: (B, h, w) float32. CLS's row of attention rollout through all layers of SA, without prefix tokens.
        layers: (B, L, h, w) float32. CLS's attention in each layer of SA, mean over heads, the first layer first;
            not accumulated. Where CLS is not among the tokens or not classified, the weights with which the read-out
            reads the tokens (a pool, class-attention layers) take the place of its row, here too. Where a backbone
            merges tokens, the L layers are those after the last merging.
        local: (B, h, w) bool. GLCA's local tokens; None without GLCA, or before it is trained.
        glca: (B, h, w) float32. CLS's attention in GLCA's last block, mean over heads; None likewise.
        logits: of "sa" and, where it is there, "glca": (B, classes) float32; of a re-ID model, those of the training
            identities.
    """

    rollout: Tensor
    layers: Tensor
    local: Tensor | None
    glca: Tensor | None
    logits: dict[str, Tensor]

    def map(self, name: MapName) -> Tensor:
        """(B, h, w) of "rollout", "glca" or "product".

        Raises:
            InputError: a map that this model does not have.
        """
        return combined_map(name, self.rollout, self.glca)


def combined_map(name: MapName, rollout, glca):
    """The map of this name from rollout and GLCA's attention, tensors or arrays of one shape (…, h, w).

    "product" is their elementwise product, scaled so that a map sums to 1.

    Raises:
        InputError: a name of another map, or GLCA's attention where there is none.
    """
    if name == "rollout":
        return rollout
    if name == "gradient":
        raise InputError("map gradient: it needs a backward pass: explain(..., gradient=True)")
    if name not in ("glca", "product"):
        raise InputError(f"map: expected rollout, glca, product or gradient, got {name!r}")
    if glca is None:
        raise InputError(f"map {name}: the model has no trained GLCA branch; its map is rollout")
    if name == "glca":
        return glca
    product = rollout * glca
    return product / product.sum((-2, -1), keepdims=True)


@torch.no_grad()
def attention_maps(model: DualCrossAttentionViT, images: Tensor, trace: AttentionTrace | None = None) -> AttentionMaps:
    """The attention maps of a batch, from one forward pass.

    No tokens × tokens matrix is stored: see `attention_rollout`.

    Args:
        model: in evaluation mode.
        images: (B, 3, H, W) normalized, B at least 1.
        trace: of `model.trace(images)`, where there is one already.

    Raises:
        InputError: as `DualCrossAttentionViT.trace` does.
    """
    trace = model.trace(images) if trace is None else trace
    prefix, grid = model.num_prefix_tokens, patch_grid(model, images)

    def on_grid(rows: Tensor) -> Tensor:
        """(…, prefix + N) → (…, h, w)"""
        return rows[..., prefix:].unflatten(-1, grid)

    rollout = rollout_of(trace.layers, trace.start)
    rows = [_class_attention(layer, trace.start) for layer in trace.layers]
    layers = torch.stack(rows, dim=1)
    local = None
    if trace.output.local is not None:
        is_local = torch.zeros(len(images), grid[0] * grid[1], dtype=torch.bool, device=images.device)
        local = is_local.scatter(1, trace.output.local, True).unflatten(1, grid)
    glca = None if trace.glca is None else on_grid(trace.glca)
    logits = {name: each.float() for name, each in trace.output.logits.items()}
    return AttentionMaps(on_grid(rollout), on_grid(layers), local, glca, logits)


def vote(logits: dict[str, Tensor]) -> Tensor:
    """The mean of the branches' probabilities, (B, classes), from their logits, (B, classes) each."""
    return torch.stack([F.softmax(each, dim=-1) for each in logits.values()]).mean(0)


def patch_grid(model: DualCrossAttentionViT, images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches of images (B, 3, H, W)."""
    return model.family.grid(model.backbone, (images.shape[-2], images.shape[-1]))


def _class_attention(layer: AttentionLayer, start: Tensor | None) -> Tensor:
    """CLS's attention weights in a layer, mean over heads: (B, T) float32.

    Args:
        start: (B, n) weights of the queries' rows, in place of CLS's.
        mixing: of talking heads, which have no class token among the queries.
    """
    if start is not None:
        return row_times_layer(start, layer)
    query, key, *_ = layer
    with torch.autocast(query.device.type, enabled=False):
        scores = query[:, :, :1].float() @ key.float().transpose(-2, -1) / query.shape[-1] ** 0.5
    return scores.softmax(dim=-1).mean(1)[:, 0]
