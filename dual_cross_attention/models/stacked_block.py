"""A backbone's block over the stack [SA ; PWCA] of 2B rows: shared weights and kernel launches, two attentions.

Notable:
- at PWCA's first block both streams have the same tokens, so it takes B rows and returns 2B: norm, query, key and value
  are computed once;
- in the last block, query, output projection and MLP are computed for the prefix tokens only (CLS, distillation,
  registers) where nothing reads the patch tokens. Keys and values are computed for all tokens. A pooled backbone reads
  all tokens, and its last block is as any other.
"""

from functools import partial

from torch import Tensor, nn

from dual_cross_attention.attention.pairwise import pairwise_attention, stacked_attention
from dual_cross_attention.backbones.drop_path import DropPathMasks
from dual_cross_attention.backbones.family import BackboneFamily


def stacked_block(
    block: nn.Module,
    family: BackboneFamily,
    tokens: Tensor,
    positions: Tensor | None,
    distractors: Tensor | None,
    drop_path: DropPathMasks | None = None,
    clean_distractors: bool = False,
    distractor_tokens: Tensor | None = None,
    distractor_noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Applies any block, or any but the last where that one is computed for prefix tokens only.

    Args:
        family: of the block.
        tokens: (2B, N, D), SA above PWCA; (B, N, D) at PWCA's first block, or where there is no PWCA.
        positions: of the tokens in this block; None: the family has none.
        distractors: (B,) the index of each image's distractor; None: no PWCA.
        drop_path: factors for the rows of the output.
        clean_distractors, distractor_tokens, distractor_noise: see `stacked_attention`.

    Returns:
        tokens (2B, N, D), or (B, N, D) without PWCA; for rollout, SA's query and key, each (B, heads, N, head_dim),
        detached views, a copy of the family's `score_mixing`, and its `bias`, detached.
    """
    normed = family.normalize(block, tokens)
    query, key, value = family.project(block, normed, positions)
    bias = family.bias(block)
    if distractors is None:
        attended = family.attend(block, query, key, value, bias)
    else:
        attend, options = partial(family.attend, block, bias=bias), (clean_distractors, distractor_tokens)
        attended = stacked_attention(attend, query, key, value, distractors, *options, distractor_noise)
    batch = tokens.shape[0] if distractors is None else len(distractors)
    out = family.close(block, tokens, normed, attended, drop_path)
    for_rollout = _copied_mixing(block, family), None if bias is None else bias.detach()
    return out, query[:batch].detach(), key[:batch].detach(), *for_rollout


def last_block(
    block: nn.Module,
    family: BackboneFamily,
    tokens: Tensor,
    positions: Tensor | None,
    distractors: Tensor | None,
    drop_path: DropPathMasks | None = None,
    clean_distractors: bool = False,
    distractor_tokens: Tensor | None = None,
    distractor_noise: Tensor | None = None,
    prefix: int = 1,
    whole_sa: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    """Applies the last block; arguments as those of `stacked_block`.

    Args:
        prefix: number of tokens before the patch tokens.
        whole_sa: compute SA's patch tokens too (GLCA reads them).

    Returns:
        SA's tokens (B, N, D), or (B, prefix, D); PWCA's (B, prefix, D), or None; and for rollout SA's query of CLS
        alone (B, heads, 1, head_dim) and key (B, heads, N, head_dim), detached, and a copy of `score_mixing`.
    """
    batch = tokens.shape[0] if distractors is None else len(distractors)
    normed = family.normalize(block, tokens)
    key, value = family.project_key_value(block, normed, positions)
    sa_drop, pwca_drop = (None, None) if drop_path is None else _halves(drop_path, batch)
    of_prefix = None if positions is None else positions[..., :prefix, :]

    queried = slice(None) if whole_sa else slice(prefix)
    query_normed = normed[:batch, queried]
    query = family.project_query(block, query_normed, positions if whole_sa else of_prefix)
    attended = family.attend(block, query, key[:batch], value[:batch])
    sa = family.close(block, tokens[:batch, queried], query_normed, attended, sa_drop)
    for_rollout = query[:, :, :1].detach(), key[:batch].detach(), _copied_mixing(block, family)
    if distractors is None:
        return sa, None, *for_rollout

    own = slice(-batch, None)  # all rows, where the first block is also the last
    query_normed = normed[own, :prefix]
    distractor = slice(batch) if clean_distractors else own
    query = family.project_query(block, query_normed, of_prefix)
    other_key, other_value = key[distractor], value[distractor]
    if distractor_noise is not None:
        other_key, other_value = distractor_noise.to(key.dtype)
    attended = pairwise_attention(
        partial(family.attend, block),
        query,
        key[own],
        value[own],
        other_key,
        other_value,
        distractors,
        distractor_tokens,
    )
    pwca = family.close(block, tokens[own, :prefix], query_normed, attended, pwca_drop)
    return sa, pwca, *for_rollout


def _copied_mixing(block: nn.Module, family: BackboneFamily) -> Tensor | None:
    """A copy, since FSDP frees the parameters of a block after it."""
    mixing = family.score_mixing(block)
    return None if mixing is None else mixing.detach().clone()


def _halves(drop_path: DropPathMasks, batch: int) -> tuple[DropPathMasks, DropPathMasks]:
    first, second = (DropPathMasks(*(mask[rows] for mask in drop_path)) for rows in (slice(batch), slice(batch, None)))
    return first, second
