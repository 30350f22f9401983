"""Which patches of two images match, as scores of all pairs of patches.

Both images pass through SA separately; what is compared is of the last layer.

- "pwca": the distractor's half of PWCA's joint softmax, softmax(Q₁[K₁; K₂]ᵀ/√d), mean over heads, of each image with
  the other as its distractor; the score of a pair of patches is the mean of both directions (arXiv 2205.02151,
  equation 4);
- "cosine": cosine similarity of the patch tokens after the norm, at least 0, times the rollout of both patches.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dual_cross_attention.attention.rollout import attention_weights
from dual_cross_attention.backbones.windows import Windows
from dual_cross_attention.errors import InputError
from dual_cross_attention.explanation.maps import attention_maps
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT

MatchMethod = Literal["pwca", "cosine"]
METHODS: tuple[MatchMethod, ...] = get_args(MatchMethod)
DEFAULT_METHOD: MatchMethod = "pwca"
"""The method whose best pairs, deleted, lower the similarity faster (docs/explanation.md)."""


@torch.no_grad()
def match_scores(
    model: DualCrossAttentionViT, first: Tensor, second: Tensor, method: MatchMethod = DEFAULT_METHOD
) -> Tensor:
    """Scores of all pairs of patches, one of each image: (B, N, N) float32, not negative; larger matches better.

    Args:
        model: in evaluation mode.
        first, second: (B, 3, H, W) normalized; row i of both is a pair.

    Raises:
        InputError: another method, or images that `check_images` refuses.
    """
    if method not in METHODS:
        raise InputError(f"method: expected {' or '.join(METHODS)}, got {method!r}")
    images, prefix = torch.cat([first, second]), model.num_prefix_tokens
    trace = model.trace(images, patch_tokens=True)
    if method == "cosine":
        tokens = F.normalize(model.backbone.norm(trace.tokens)[:, prefix:].float(), dim=-1)
        weighted = tokens * attention_maps(model, images, trace).rollout.flatten(1)[..., None]
        one, other = weighted.chunk(2)
        with torch.autocast(images.device.type, enabled=False):
            return (one @ other.transpose(-2, -1)).clamp(min=0)
    block = model.family.blocks(model.backbone)[-1]
    normed = model.family.normalize(block, trace.last_input)
    query, key, _ = model.family.project(block, normed, trace.last_positions)
    (first_query, second_query), (first_key, second_key) = (each.float().chunk(2) for each in (query, key))
    of_block = model.family.score_mixing(block), model.family.bias(block), model.family.windows(block)
    there = distractor_attention(first_query[:, :, prefix:], first_key, second_key, *of_block)[..., prefix:]
    back = distractor_attention(second_query[:, :, prefix:], second_key, first_key, *of_block)[..., prefix:]
    return (there + back.transpose(-2, -1)) / 2


def distractor_attention(
    query: Tensor,
    key: Tensor,
    distractor_key: Tensor,
    mixing: Tensor | None = None,
    bias: Tensor | None = None,
    windows: Windows | None = None,
) -> Tensor:
    """The distractor's half of softmax(Q₁[K₁; K₂]ᵀ/√d + bias), mean over heads: (B, n, T).

    Args:
        query: (B, heads, n, d) of the target.
        key, distractor_key: (B, heads, T, d).
        mixing: (heads, heads) of talking heads, before the softmax; see `BackboneFamily.score_mixing`.
        bias: of the scores of each image's keys, (1, heads, n, T); None: there is none.
        windows: of all tokens, which are in the axis of heads; the weights between windows are 0.
    """
    with torch.autocast(query.device.type, enabled=False):
        both = torch.cat([key, distractor_key], dim=2)
        of_both = None if bias is None else bias.repeat(1, 1, 1, 2)
        weights = attention_weights(query, both, mixing, of_both)[..., key.shape[2] :]
    return weights.mean(1) if windows is None else windows.scatter(weights.unflatten(1, (windows.number, -1)).mean(2))


def best_pairs(scores: np.ndarray, number: int) -> np.ndarray:
    """The pairs with the largest scores, each patch in one pair at most, the largest first.

    Args:
        scores: (N, M).
        number: of pairs, at most N and M.

    Returns:
        (number, 2) indices.
    """
    number = min(number, *scores.shape)
    found: list[tuple[int, int]] = []
    is_free = np.ones(scores.shape[0], dtype=bool), np.ones(scores.shape[1], dtype=bool)
    for place in np.argsort(-scores, axis=None, kind="stable"):
        if len(found) == number:
            break
        row, column = divmod(int(place), scores.shape[1])
        if is_free[0][row] and is_free[1][column]:
            is_free[0][row] = is_free[1][column] = False
            found.append((row, column))
    return np.array(found, dtype=np.int64).reshape(-1, 2)
