"""softmax(QKᵀ/√d) V by PyTorch's fused kernels: the attention of every backbone that has no other."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, heads, n, d) queries, (B, heads, N, d) keys, (B, heads, N, d) values → (B, n, heads · d), heads merged."""


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, bias: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√d + bias) V: (B, heads, n, d), (B, heads, N, d), (B, heads, N, d) → (B, n, heads · d), heads merged.

    PyTorch's fused kernels store their result in this layout, so merging the heads copies nothing.

    Args:
        dropout: rate of attention weights that are dropped.
        bias: (1 or B, heads, n, N) added to the scores; (…, n, M), where the keys are those of N / M images, one after
            the other: each image's keys have the same bias. None: nothing is added.
    """
    if bias is not None and bias.shape[-1] != key.shape[2]:
        bias = bias.repeat(1, 1, 1, key.shape[2] // bias.shape[-1])
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)
