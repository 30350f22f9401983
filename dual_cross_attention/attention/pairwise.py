"""Pair-wise cross-attention (PWCA): a target's queries over its own keys and those of a distractor, jointly.

Notable:
- SA and PWCA share every weight, so their tokens travel as one stack of 2B rows; only the attention tells them apart;
- a distractor is another picture of the same batch: its keys and values are rows of the stack already;
- one softmax runs over the scores of both pictures, so the distractor takes attention away from the target.
"""

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor

from dual_cross_attention.backbones.opened_block import attend
from dual_cross_attention.errors import InputError

CIRCLES = 16  # drawn, to take the one in which the fewest pictures are distracted by their own identity


def draw_distractors(batch_size: int, device: torch.device | str = "cpu", identities: Tensor | None = None) -> Tensor:
    """A distractor for every picture of a batch: a random derangement, (B,) indices.

    The pictures are put in a random circle and each is distracted by its neighbour, so nobody distracts itself and
    every other picture is equally likely. Drawn from torch's generator of `device`.

    The paper draws from the whole training set, where a second picture of the same identity hardly ever comes up; in a
    batch of P identities x K pictures it would, the more often the fewer identities there are. With `identities`, the
    best of several circles is taken, and same-identity distractors become as rare again as the batch allows.

    Args:
        identities: (B,) who is on each picture, on `device`; None: it does not matter.

    Raises:
        InputError: fewer than two pictures.
    """
    if batch_size < 2:
        raise InputError(
            f"PWCA needs a second picture in the batch as the distractor, and the batch has {batch_size}: "
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


def pairwise_attention(
    attention: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    distracting_key: Tensor,
    distracting_value: Tensor,
    distractors: Tensor,
) -> Tensor:
    """softmax(Q₁[K₁; K₂]ᵀ/√d) [V₁; V₂], with heads merged.

    Source: DCAL (arXiv 2205.02151), section 3.3.

    Args:
        query: (B, heads, n, d) of the targets.
        key, value: (B, heads, N, d) of the targets.
        distracting_key, distracting_value: (B, heads, N, d) of the stream that distracts.
        distractors: (B,) which row of it distracts picture i.

    Returns:
        (B, n, heads · d)
    """
    both_keys = torch.cat([key, distracting_key.index_select(0, distractors)], dim=2)
    both_values = torch.cat([value, distracting_value.index_select(0, distractors)], dim=2)
    return attend(attention, query, both_keys, both_values)


def stacked_attention(
    attention: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    distractors: Tensor,
    clean_distractors: bool = False,
) -> Tensor:
    """SA on the first B rows, PWCA on the last B: (2B, n, heads · d), heads merged.

    Args:
        query, key, value: (2B, heads, tokens, d); rows 0..B are the SA stream, rows B..2B the PWCA stream of the same
            pictures in the same order. Or (B, heads, tokens, d), where both streams still have the same tokens.
        distractors: (B,) which picture distracts picture i.
        clean_distractors: take the distractor's keys and values from its SA stream, not its PWCA stream.
    """
    # split, not slices: its backward pass puts the halves together, where that of a slice fills the rest with zeros
    (sa_query, query), (sa_key, key), (sa_value, value) = (
        (both[0], both[-1]) for both in (rows.split(len(distractors)) for rows in (query, key, value))
    )
    distracting = (sa_key, sa_value) if clean_distractors else (key, value)
    sa = attend(attention, sa_query, sa_key, sa_value)
    return torch.cat([sa, pairwise_attention(attention, query, key, value, *distracting, distractors)])
