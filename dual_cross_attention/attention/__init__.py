"""The method: rollout, pair-wise and global-local cross-attention, over queries, keys and values."""

from typing import Any

from dual_cross_attention.attention.global_local import GlobalLocalBlock, select_local
from dual_cross_attention.attention.pairwise import sample_distractor_tokens, sample_distractors, stacked_attention
from dual_cross_attention.attention.rollout import attention_rollout
from dual_cross_attention.deprecation import renamed

__all__ = [
    "GlobalLocalBlock",
    "attention_rollout",
    "sample_distractor_tokens",
    "sample_distractors",
    "select_local",
    "stacked_attention",
]


def __getattr__(name: str) -> Any:
    return renamed(__name__, name, {"draw_distractors": "sample_distractors"})
