"""Attention rollout: how much of every input token reaches the class token through all layers.

Notable:
- only CLS's row of the product is computed, from the last layer to the first: a vector times a matrix per layer,
  not a matrix times a matrix;
- attention weights are recomputed from queries and keys, a few query rows at a time, so no tokens × tokens matrix is
  stored; on CUDA a fused kernel (`rollout_kernel.py`) does not even write those few to memory;
- always float32 and never part of the autograd graph, whatever autocast says around it.
"""

import importlib.util
import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from dual_cross_attention.backbones.talking_heads import mix_heads
from dual_cross_attention.backbones.windows import Windows

# Attention weights held at once (heads × query rows × tokens). On a CPU they should stay in the cache: 2¹⁸ float32 are
# 1 MiB, a core's L2 on the AMD EPYC this was measured on. 2¹⁷ took 1.07 times as long at 785 tokens, 2¹⁹ as long.
# Elsewhere kernel launches count more.
MAX_SCORES_CPU = 2**18
MAX_SCORES = 2**24

HAS_TRITON = importlib.util.find_spec("triton") is not None  # comes with PyTorch for CUDA on Linux
KERNEL_DTYPES = (torch.float16, torch.bfloat16)  # what tensor cores multiply exactly; float32 stays in chunks
KERNEL_CAPABILITY = (8, 0)  # before Ampere, Triton multiplies without tensor cores, and cuBLAS' chunks are faster
KERNEL_HEAD_DIM = 128  # the tiles of longer heads may be more than a multiprocessor's shared memory


class AttentionLayer(NamedTuple):
    """What the attention weights of a layer are computed from: softmax(QKᵀ/√d + bias).

    Args:
        query, key: (B, heads, tokens, head_dim); in windows of n tokens, (B, windows · heads, n, head_dim).
        mixing: (heads, heads) of talking-heads attention, see `row_times_attention`; None: heads are not mixed.
        bias: (1 or B, heads, tokens, tokens), in windows (1 or B, windows · heads, n, n); None: nothing is added.
        windows: None: all tokens attend to all.
    """

    query: Tensor
    key: Tensor
    mixing: Tensor | None = None
    bias: Tensor | None = None
    windows: Windows | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens, without the padding of windows."""
        return self.key.shape[2] if self.windows is None else math.prod(self.windows.grid)


@torch.no_grad()
def attention_rollout(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    max_scores: int | None = None,
    start: Tensor | None = None,
    mixings: Sequence[Tensor | None] | None = None,
    biases: Sequence[Tensor | None] | None = None,
    windows: Sequence[Windows | None] | None = None,
) -> Tensor:
    """The class token's row of Ŝ = S̄_L · … · S̄₂ · S̄₁, with S̄ₗ = 0.5·Sₗ + 0.5·E and Sₗ the mean over heads.

    Source: DCAL (arXiv 2205.02151), section 3.2; Abnar & Zuidema 2020.

    Args:
        queries: one tensor a layer, first layer first, each (B, heads, tokens, head_dim); token 0 is CLS. The last
            layer's may hold its first tokens only: no other query than CLS's is read there, unless `start` is given.
        keys: likewise, all tokens in every layer. Scores are scaled by 1/√head_dim.
        max_scores: attention weights held in memory at once; a larger layer is processed in chunks of heads and
            query rows. None chooses by device, and on CUDA takes the fused kernel where Triton is installed. But for
            rounding, the result does not depend on it.
        start: (B, tokens), a row that is multiplied by Ŝ in place of CLS's: the weights with which a pool reads the
            tokens of the last layer, where it takes CLS's place.
        mixings, biases, windows: of each layer, see `AttentionLayer`; None: no layer has any. With biases or windows, a
            start is needed.

    Returns:
        (B, tokens), float32; rows sum to 1, or to what those of `start` do. Where windows are padded, to less: the
        padding is attended to, and is no token.

    Raises:
        ValueError: no layers, or queries and keys, or a start, that do not match.
    """
    if not queries or len(queries) != len(keys):
        raise ValueError(
            f"expected queries and keys of the same layers, at least one; got {len(queries)} and {len(keys)}"
        )
    shape = keys[0].shape
    for place, (query, key) in enumerate(zip(queries, keys, strict=True), start=1):
        match = query.ndim == key.ndim == 4 and key.shape == shape
        if match and place == len(keys):
            match = query.shape[:2] == shape[:2] and 1 <= query.shape[2] <= shape[2] and query.shape[3] == shape[3]
        elif match:
            match = query.shape == shape
        if not match:
            raise ValueError(
                f"layer {place} of {len(keys)}: expected query and key of one shape (B, heads, tokens, head_dim), the "
                f"same in all layers (the last query may have fewer tokens, at least one); got {tuple(query.shape)} "
                f"and {tuple(key.shape)}, after keys of {tuple(shape)} in the first layer"
            )

    further = [[None] * len(keys) if each is None else each for each in (mixings, biases, windows)]
    layers = [AttentionLayer(*layer) for layer in zip(queries, keys, *further, strict=True)]
    batch, tokens = shape[0], layers[-1].num_tokens
    row = torch.zeros(batch, tokens, dtype=torch.float32, device=keys[0].device)
    row[:, 0] = 1.0  # e_CLS
    if start is None:
        if layers[-1].windows is not None or layers[-1].bias is not None:
            raise ValueError("start: expected the row of a pool, since the last layer has windows or a bias; got None")
        # The last layer is entered with e_CLS alone: one query row is enough there.
        of_class = queries[-1][:, :, :1], keys[-1], max_scores, layers[-1].mixing
        row = 0.5 * row + 0.5 * row_times_attention(row[:, :1], *of_class)
    else:
        if start.shape != row.shape or queries[-1].shape != shape:
            raise ValueError(
                f"start: expected (B, tokens), {tuple(row.shape)}, and all queries of the last layer; got "
                f"{tuple(start.shape)} and {tuple(queries[-1].shape)}"
            )
        row = start.float()
        row = 0.5 * row + 0.5 * row_times_layer(row, layers[-1], max_scores)
    for layer in reversed(layers[:-1]):
        row = 0.5 * row + 0.5 * row_times_layer(row, layer, max_scores)
    return row


@torch.no_grad()
def row_times_layer(row: Tensor, layer: AttentionLayer, max_scores: int | None = None) -> Tensor:
    """row · S of a layer, all tokens of which have a query: (B, tokens) → (B, tokens), float32."""
    query, key, mixing, bias, windows = layer
    if windows is None:
        return row_times_attention(row, query, key, max_scores, mixing, bias)
    of_windows = windows.split(row.unsqueeze(-1)).squeeze(-1)
    of_windows = row_times_attention(of_windows, query, key, max_scores, mixing, bias)
    return windows.join(of_windows.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def row_times_attention(
    row: Tensor,
    query: Tensor,
    key: Tensor,
    max_scores: int | None = None,
    mixing: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """row · S, with S the mean over heads of softmax(QKᵀ/√d): (B, n), (B, h, n, d), (B, h, N, d) → (B, N).

    In float32, whatever autocast says around it; arguments as of `attention_rollout`. With a row for each of w windows,
    (B, w, n), (B, w · h, n, d), (B, w · h, N, d) → (B, w, N).

    Args:
        mixing: (h, h) of talking-heads attention (arXiv 2003.02436): row i mixes the scores of all heads to those of
            the i-th before the softmax. A bias in it is the same for all keys, and changes no softmax.
        bias: (1 or B, h, n, N) added to QKᵀ/√d; not with a mixing.
    """
    with torch.autocast(row.device.type, enabled=False):
        if torch.compiler.is_exporting():
            return _row_times_plain(row, query, key, mixing, bias)
        if mixing is not None:
            if max_scores is None:
                max_scores = MAX_SCORES_CPU if row.device.type == "cpu" else MAX_SCORES
            return _row_times_mixed(row, query, key, mixing.float(), max_scores)
        if max_scores is None and bias is None and row.ndim == 2 and has_kernel(query, key):
            from dual_cross_attention.attention.rollout_kernel import row_times_attention as kernel  # needs Triton

            with torch.cuda.device(row.device):  # Triton launches on the current device
                return kernel(row, query, key)
        if max_scores is None:
            max_scores = MAX_SCORES_CPU if row.device.type == "cpu" else MAX_SCORES
        return _row_times_chunks(row, query, key, max_scores, bias)


def has_kernel(query: Tensor, key: Tensor) -> bool:
    """Whether the fused kernel takes these, and runs here."""
    return (
        HAS_TRITON
        and query.is_cuda
        and query.dtype == key.dtype
        and query.dtype in KERNEL_DTYPES
        and query.shape[-1] <= KERNEL_HEAD_DIM
        and torch.cuda.get_device_capability(query.device) >= KERNEL_CAPABILITY
        and kernel_runs(query.device, query.dtype, query.shape[-1])
    )


@cache
def kernel_runs(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Tried once: Triton needs a C compiler, and the tiles shared memory, which not every machine with a GPU has."""
    try:
        from dual_cross_attention.attention.rollout_kernel import row_times_attention

        row, tokens = torch.ones(1, 1, device=device), torch.ones(1, 1, 1, head_dim, device=device, dtype=dtype)
        with torch.cuda.device(device):
            row_times_attention(row, tokens, tokens)
    except Exception as error:  # of whatever the toolchain raises
        said = " ".join(str(error).split())[:200]
        warnings.warn(f"rollout continues without its fused kernel, more slowly: Triton says {said}", stacklevel=2)
        return False
    return True


def _row_times_plain(
    row: Tensor, query: Tensor, key: Tensor, mixing: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The same with all attention weights at once, for `torch.export`: no loop that depends on the batch, no buffer."""
    weights = attention_weights(query.float(), key.float(), mixing, bias)
    if row.ndim == 2:
        return (row[:, None, None] @ weights).mean(1)[:, 0]
    return (row[:, :, None, None] @ weights.unflatten(1, (row.shape[1], -1))).mean(2)[:, :, 0]


def attention_weights(query: Tensor, key: Tensor, mixing: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√d), all weights at once: (B, heads, n, d), (B, heads, N, d) → (B, heads, n, N).

    Args:
        mixing: (heads, heads) of the scores of talking heads, before the softmax.
        bias: of the scores, as of `AttentionLayer`.
    """
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)
    if mixing is not None:
        scores = mix_heads(scores, mixing.to(scores.dtype))
    return (scores if bias is None else scores + bias.to(scores.dtype)).softmax(dim=-1)


def _row_times_mixed(row: Tensor, query: Tensor, key: Tensor, mixing: Tensor, max_scores: int) -> Tensor:
    """The same of talking heads: `max_scores` attention weights at a time, those of all heads together."""
    (batch, heads, rows, _), tokens = query.shape, key.shape[2]
    query, key = query.float(), key.float()
    out = row.new_zeros(batch, tokens)
    step = min(rows, max(1, max_scores // (heads * tokens)))
    group = max(1, max_scores // (heads * step * tokens))  # several images at once where they are small
    for first in range(0, batch, group):
        of = slice(first, first + group)
        for start in range(0, rows, step):
            chunk = slice(start, start + step)
            out[of] += _row_times_plain(row[of, chunk], query[of, :, chunk], key[of], mixing)
    return out


def _row_times_chunks(row: Tensor, query: Tensor, key: Tensor, max_scores: int, bias: Tensor | None) -> Tensor:
    """The same in plain PyTorch: `max_scores` attention weights at a time, in one buffer used again and again."""
    batch, all_heads, rows, head_dim = query.shape
    tokens, shape_of_rows = key.shape[2], row.shape[:-1]
    heads = all_heads if row.ndim == 2 else all_heads // row.shape[1]
    query = query.float().flatten(0, 1)  # (B·h, n, d); nothing is copied for a single float32 image
    key = key.float().flatten(0, 1).transpose(-2, -1)  # (B·h, d, N)
    row = (row.flatten(0, -2) / heads).repeat_interleave(heads, dim=0).unsqueeze(1)  # (B·h, 1, n)
    out = row.new_zeros(batch * all_heads, 1, tokens)
    if bias is not None:
        bias = bias.float().flatten(0, 1)  # (h, n, N), of all images, or (B·h, n, N)

    step = min(rows, max(1, max_scores // tokens))
    group = min(batch * all_heads, max(1, max_scores // (step * tokens)))  # several heads at once where they are small
    buffer = row.new_empty(group * step * tokens)
    for first in range(0, batch * all_heads, group):
        of = slice(first, first + group)
        for start in range(0, rows, step):
            chunk = query[of, start : start + step]
            shape = (*chunk.shape[:2], tokens)
            scores = buffer[: math.prod(shape)].view(shape)
            torch.baddbmm(scores, chunk, key[of], beta=0, alpha=1 / math.sqrt(head_dim), out=scores)
            if bias is not None:
                of_heads = torch.arange(first, first + len(chunk), device=bias.device) % len(bias)
                scores += bias[of_heads, start : start + step]
            # In place, for half the cache: whenever other work took its share of it, a second buffer cost 1.3 times
            # the time.
            torch.softmax(scores, dim=-1, out=scores)
            torch.baddbmm(out[of], row[of, :, start : start + step], scores, out=out[of])
    return out.view(-1, heads, tokens).sum(1).view(*shape_of_rows, tokens)
