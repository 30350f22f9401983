"""Dual Cross-Attention Learning (DCAL): Vision Transformers that tell apart what looks almost the same."""

from dual_cross_attention.attention import attention_rollout
from dual_cross_attention.errors import InputError
from dual_cross_attention.losses import UncertaintyWeighting
from dual_cross_attention.models import DualCrossAttentionViT, create_model, list_backbones

__version__ = "0.1.0"

__all__ = [
    "DualCrossAttentionViT",
    "InputError",
    "UncertaintyWeighting",
    "attention_rollout",
    "create_model",
    "list_backbones",
]
