"""Dual Cross-Attention Learning (DCAL): Vision Transformers that tell apart what looks almost the same."""

from dual_cross_attention.attention import attention_rollout
from dual_cross_attention.errors import InputError
from dual_cross_attention.losses import UncertaintyWeighting
from dual_cross_attention.models import DualCrossAttentionViT, create_model, list_backbones
from dual_cross_attention.version import __version__

__all__ = [
    "DualCrossAttentionViT",
    "InputError",
    "UncertaintyWeighting",
    "__version__",
    "attention_rollout",
    "create_model",
    "list_backbones",
]
