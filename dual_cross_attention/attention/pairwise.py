"""Pair-wise cross-attention (PWCA): a target's queries over its own keys and those of a distractor, jointly.

Notable:
- SA and PWCA share all weights, so their tokens form one stack of 2B rows; only the attention differs;
- a distractor is another image of the same batch: its keys and values are rows of the stack already;
- one softmax runs over the scores of both images, so the distractor takes attention away from the target.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dual_cross_attention.backbones.fused_attention import Attend, attend
from dual_cross_attention.errors import InputError

CIRCLES = 16  # random circles; the one with the fewest same-identity pairs is used


def sample_distractors(batch_size: int, device: torch.device | str = "cpu", identities: Tensor | None = None) -> Tensor:
    """A distractor for every image of a batch: a random derangement, (B,) indices.

    The images are put in a random circle, and each image's distractor is its neighbor: never itself, and every other
    image with equal probability. Sampled from torch's generator of `device`.

    The paper samples from the whole training set, where a second image of the same identity is rare. In a batch of
    P identities x K images it is frequent. With `identities`, the circle with the fewest same-identity pairs out of
    `CIRCLES` is used.

    Args:
        identities: (B,) identity of each image, on `device`; None: not considered.

    Raises:
        InputError: fewer than two images.
    """
    if batch_size < 2:
        raise InputError(
            f"PWCA needs a second image in the batch as the distractor, and the batch has {batch_size}: "
            "train with batch_size >= 2, or with --ablation sa_glca or sa_only"
        )
    if identities is None:
        circle = torch.randperm(batch_size, device=device)
    else:
        circles = torch.rand(CIRCLES, batch_size, device=device).argsort(1)
        around = identities[circles]
        fewest = (around == around.roll(-1, 1)).sum(1).argmin()
        circle = circles.index_select(0, fewest[None])[0]  # an index that is read would wait for the GPU
    distractors = torch.empty_like(circle)
    distractors[circle] = circle.roll(-1)
    return distractors


def sample_distractor_tokens(
    batch_size: int, prefix: int, patches: int, share: float, device: torch.device | str = "cpu"
) -> Tensor | None:
    """Samples the tokens of each distractor that are keys and values: all prefix tokens, and random patch tokens.

    Sampled from torch's generator of `device`, for every target by itself; one sample serves all blocks and heads.

    Args:
        prefix: number of tokens before the patch tokens (CLS, distillation, registers); always included.
        patches: N, the number of patch tokens.
        share: in [0, 1]; round(share · N) patch tokens are sampled.

    Returns:
        (B, prefix + n) indices of tokens; None: all of them, and nothing is sampled.
    """
    number = round(share * patches)
    if number == patches:
        return None
    sampled = torch.rand(batch_size, patches, device=device).topk(number, dim=1).indices
    return torch.cat([torch.arange(prefix, device=device).expand(batch_size, -1), prefix + sampled], dim=1)


def pairwise_attention(
    attention: Attend | nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    distractor_key: Tensor,
    distractor_value: Tensor,
    distractors: Tensor,
    distractor_tokens: Tensor | None = None,
) -> Tensor:
    """softmax(Q₁[K₁; K₂]ᵀ/√d) [V₁; V₂], with heads merged.

    Source: DCAL (arXiv 2205.02151), section 3.3.

    Args:
        attention: a function of query, key and value; or a module with timm's `attn_drop`, for fused attention.
        query: (B, heads, n, d) of the targets.
        key, value: (B, heads, N, d) of the targets.
        distractor_key, distractor_value: (B, heads, N, d) of the distractors' stream.
        distractors: (B,) the distractor's row for image i.
        distractor_tokens: (B, m) the distractor's tokens that are keys and values; None: all.

    Returns:
        (B, n, heads · d)
    """
    others = [tensor.index_select(0, distractors) for tensor in (distractor_key, distractor_value)]
    if distractor_tokens is not None:
        others = [
            other.gather(2, distractor_tokens[:, None, :, None].expand(-1, other.shape[1], -1, other.shape[3]))
            for other in others
        ]
    both_keys, both_values = (torch.cat(pair, dim=2) for pair in zip((key, value), others, strict=True))
    return _function_of(attention)(query, both_keys, both_values)


def stacked_attention(
    attention: Attend | nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    distractors: Tensor,
    clean_distractors: bool = False,
    distractor_tokens: Tensor | None = None,
    distractor_noise: Tensor | None = None,
) -> Tensor:
    """SA on the first B rows, PWCA on the last B: (2B, n, heads · d), heads merged.

    Args:
        attention: as of `pairwise_attention`.
        query, key, value: (2B, heads, tokens, d); rows 0..B are the SA stream, rows B..2B the PWCA stream of the same
            images in the same order. Or (B, heads, tokens, d), where both streams still have the same tokens.
        distractors: (B,) the index of each image's distractor in the batch.
        clean_distractors: take the distractor's keys and values from its SA stream, not its PWCA stream.
        distractor_tokens: (B, m) which of the distractor's tokens are keys and values; None: all.
        distractor_noise: (2, B, heads, tokens, d) keys and values in place of the distractors' own; None: theirs.
    """
    # split, not slices: its backward pass puts the halves together, where that of a slice fills the rest with zeros
    (sa_query, query), (sa_key, key), (sa_value, value) = (
        (both[0], both[-1]) for both in (rows.split(len(distractors)) for rows in (query, key, value))
    )
    other_key, other_value = (sa_key, sa_value) if clean_distractors else (key, value)
    if distractor_noise is not None:
        other_key, other_value = distractor_noise.to(key.dtype)
    sa = _function_of(attention)(sa_query, sa_key, sa_value)
    pwca = pairwise_attention(attention, query, key, value, other_key, other_value, distractors, distractor_tokens)
    return torch.cat([sa, pwca])


def _function_of(attention: Any) -> Attend:
    if not isinstance(attention, nn.Module):
        return attention
    dropout: Any = attention.attn_drop
    return partial(attend, dropout=dropout.p if attention.training else 0.0)
