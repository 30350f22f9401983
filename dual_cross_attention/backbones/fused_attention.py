"""softmax(QKᵀ/√d) V by PyTorch's fused kernels: the attention of every backbone that has no other."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, heads, n, d) queries, (B, heads, N, d) keys, (B, heads, N, d) values → (B, n, heads · d), heads merged."""


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(QKᵀ/√d) V: (B, heads, n, d), (B, heads, N, d), (B, heads, N, d) → (B, n, heads · d), heads merged.

    PyTorch's fused kernels store their result in this layout, so merging the heads copies nothing.

    Args:
        dropout: rate of attention weights that are dropped.
    """
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout).transpose(1, 2).flatten(2)
