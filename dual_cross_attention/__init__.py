"""Dual Cross-Attention Learning (DCAL): Vision Transformers that tell apart what looks almost the same."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dual_cross_attention.errors import InputError
from dual_cross_attention.version import __version__

if TYPE_CHECKING:
    from dual_cross_attention.attention import attention_rollout
    from dual_cross_attention.explanation.explainer import explain
    from dual_cross_attention.inference.loaded_model import load_model
    from dual_cross_attention.losses import UncertaintyWeighting
    from dual_cross_attention.metrics import rerank, retrieval_metrics
    from dual_cross_attention.models import DualCrossAttentionViT, create_model, list_backbones

# What needs torch is imported when it is first asked for: `dcal --help` and a mistyped flag need not wait for it.
_WHERE = {
    "DualCrossAttentionViT": "models",
    "UncertaintyWeighting": "losses",
    "attention_rollout": "attention",
    "create_model": "models",
    "explain": "explanation.explainer",
    "list_backbones": "models",
    "load_model": "inference.loaded_model",
    "rerank": "metrics",
    "retrieval_metrics": "metrics",
}

__all__ = [
    "DualCrossAttentionViT",
    "InputError",
    "UncertaintyWeighting",
    "__version__",
    "attention_rollout",
    "create_model",
    "explain",
    "list_backbones",
    "load_model",
    "rerank",
    "retrieval_metrics",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
