"""Pair-wise cross-attention (PWCA): a target's queries over its own keys and those of a distractor, jointly.

Notable:
- SA and PWCA share every weight, so their tokens travel as one stack of 2B rows; only the attention tells them apart;
- a distractor is another picture of the same batch: its keys and values are rows of the stack already;
- one softmax runs over the scores of both pictures, so the distractor takes attention away from the target.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

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
        circle = circles[(around == around.roll(-1, 1)).sum(1).argmin()]
    distractors = torch.empty_like(circle)
    distractors[circle] = circle.roll(-1)
    return distractors


def stacked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    distractors: Tensor,
    dropout: float = 0.0,
    clean_distractors: bool = False,
) -> Tensor:
    """SA on the first half of the rows, PWCA on the second half.

    Source: DCAL (arXiv 2205.02151), section 3.3: softmax(Q₁[K₁; K₂]ᵀ/√d) [V₁; V₂].

    Args:
        query, key, value: (2B, heads, tokens, head_dim); rows 0..B are the SA stream, rows B..2B the PWCA stream of
            the same pictures in the same order.
        distractors: (B,) which picture distracts picture i.
        dropout: of the attention weights.
        clean_distractors: take the distractor's keys and values from its SA stream, not its PWCA stream.

    Returns:
        (2B, heads, tokens, head_dim)
    """
    batch = distractors.shape[0]
    sa = F.scaled_dot_product_attention(query[:batch], key[:batch], value[:batch], dropout_p=dropout)
    rows = distractors if clean_distractors else distractors + batch
    pwca = F.scaled_dot_product_attention(
        query[batch:],
        torch.cat([key[batch:], key[rows]], dim=2),
        torch.cat([value[batch:], value[rows]], dim=2),
        dropout_p=dropout,
    )
    return torch.cat([sa, pwca])
