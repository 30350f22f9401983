"""One layer of attention rollout as two fused Triton kernels, for CUDA.

Notable:
- the first finds every query row's log-sum-exp, the second makes the same scores again, tile by tile, and adds up
  rₙ · exp(scoreₙₘ − logsumexpₙ) over the query rows n: no tile ever leaves the chip;
- keys are the tile's rows in the second, so every program owns its sums: no atomics, the same result every time;
- queries and keys are read where they lie, with whatever strides the fused qkv projection left them.

Importing this needs Triton. `rollout.py` decides where it is used.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

BLOCK_QUERY = 64
BLOCK_KEY = 64


def row_times_attention(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """row · S, with S the mean over heads of softmax(QKᵀ/√d), in float32.

    Args:
        row: (B, n) float32.
        query: (B, heads, n, head_dim), float16, bfloat16 or float32, of any strides.
        key: (B, heads, N, head_dim), of query's dtype.

    Returns:
        (B, N), float32.
    """
    batch, heads, rows, head_dim = query.shape
    tokens = key.shape[2]
    row = row.contiguous()
    logsumexp = row.new_empty(batch, heads, rows)
    out = row.new_empty(batch, heads, tokens)
    sizes = (heads, rows, tokens, math.log2(math.e) / math.sqrt(head_dim))  # exp2 is what the hardware has
    constants = {
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": max(16, 1 << (head_dim - 1).bit_length()),  # a power of two, and no fewer than 16 for tl.dot
        "BLOCK_QUERY": BLOCK_QUERY,
        "BLOCK_KEY": BLOCK_KEY,
        "num_warps": 4,
        "num_stages": 2,
    }
    # One axis: the others end at 65,535. Blocks of one head follow each other and share its keys in the cache.
    grid = (batch * heads * math.ceil(rows / BLOCK_QUERY),)
    _logsumexp_kernel[grid](query, key, logsumexp, *query.stride(), *key.stride(), *sizes, **constants)
    grid = (batch * heads * math.ceil(tokens / BLOCK_KEY),)
    _row_kernel[grid](row, query, key, logsumexp, out, *query.stride(), *key.stride(), *sizes, **constants)
    return out.mean(1)


@triton.jit
def _load_tile(
    pointer,
    start,
    count,
    token_stride,
    dim_stride,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """(BLOCK, BLOCK_DIM) of one head's tokens from `start` on; zeros beyond the last token and HEAD_DIM."""
    token = start + tl.arange(0, BLOCK)
    dim = tl.arange(0, BLOCK_DIM)
    offset = token.to(tl.int64)[:, None] * token_stride + dim.to(tl.int64)[None, :] * dim_stride
    return tl.load(pointer + offset, mask=(token < count)[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def _logsumexp_kernel(
    query,
    key,
    logsumexp,
    query_batch,
    query_head,
    query_token,
    query_dim,
    key_batch,
    key_head,
    key_token,
    key_dim,
    heads,
    rows,
    tokens,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    """Base-2 log-sum-exp of a block of query rows over all keys, with the running maximum of an online softmax."""
    blocks = tl.cdiv(rows, BLOCK_QUERY)
    first = tl.program_id(0) % blocks * BLOCK_QUERY
    pair = (tl.program_id(0) // blocks).to(tl.int64)  # image · heads + head; 64 bits, for what it is multiplied by
    query += pair // heads * query_batch + pair % heads * query_head
    key += pair // heads * key_batch + pair % heads * key_head

    query_tile = _load_tile(query, first, rows, query_token, query_dim, BLOCK_QUERY, HEAD_DIM, BLOCK_DIM)
    highest = tl.full((BLOCK_QUERY,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_QUERY,), tl.float32)
    for start in range(0, tokens, BLOCK_KEY):
        key_tile = _load_tile(key, start, tokens, key_token, key_dim, BLOCK_KEY, HEAD_DIM, BLOCK_DIM)
        score = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee") * scale
        score = tl.where((start + tl.arange(0, BLOCK_KEY) < tokens)[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        total = total * tl.exp2(highest - higher) + tl.sum(tl.exp2(score - higher[:, None]), 1)
        highest = higher
    index = first + tl.arange(0, BLOCK_QUERY)
    tl.store(logsumexp + pair * rows + index, highest + tl.log2(total), mask=index < rows)


@triton.jit
def _row_kernel(
    row,
    query,
    key,
    logsumexp,
    out,
    query_batch,
    query_head,
    query_token,
    query_dim,
    key_batch,
    key_head,
    key_token,
    key_dim,
    heads,
    rows,
    tokens,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    """Σₙ rₙ · 2^(scoreₙₘ − logsumexpₙ) for a block of keys m of one head."""
    blocks = tl.cdiv(tokens, BLOCK_KEY)
    first = tl.program_id(0) % blocks * BLOCK_KEY
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    query += pair // heads * query_batch + pair % heads * query_head
    key += pair // heads * key_batch + pair % heads * key_head

    key_tile = _load_tile(key, first, tokens, key_token, key_dim, BLOCK_KEY, HEAD_DIM, BLOCK_DIM)
    total = tl.zeros((BLOCK_KEY,), tl.float32)
    for start in range(0, rows, BLOCK_QUERY):
        query_tile = _load_tile(query, start, rows, query_token, query_dim, BLOCK_QUERY, HEAD_DIM, BLOCK_DIM)
        index = start + tl.arange(0, BLOCK_QUERY)
        weight = tl.load(row + pair // heads * rows + index, mask=index < rows, other=0.0)  # rows beyond weigh nothing
        normalizer = tl.load(logsumexp + pair * rows + index, mask=index < rows, other=0.0)
        score = tl.dot(key_tile, tl.trans(query_tile), input_precision="ieee") * scale
        total += tl.sum(tl.exp2(score - normalizer[None, :]) * weight[None, :], 1)
    index = first + tl.arange(0, BLOCK_KEY)
    tl.store(out + pair * tokens + index, total, mask=index < tokens)
