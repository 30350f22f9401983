"""Talking-heads attention (arXiv 2003.02436): a linear layer over the heads, before and after the softmax."""

from torch import Tensor
from torch.nn import functional as F


def mix_heads(scores: Tensor, mixing: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mixes scores or weights of all heads: (B, heads, n, N) → (B, heads, n, N), a view in another layout.

    Args:
        mixing: (heads, heads); row i makes the i-th head.
        bias: (heads,). Before a softmax it changes nothing.
    """
    return F.linear(scores.permute(0, 2, 3, 1), mixing, bias).permute(0, 3, 1, 2)
