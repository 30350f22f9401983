"""The DCAL model on a timm backbone, and what creates it."""

from dual_cross_attention.backbones.create import create_backbone
from dual_cross_attention.backbones.registry import list_backbones
from dual_cross_attention.models.dual_vit import ABLATIONS, DualCrossAttentionViT, DualOutput
from dual_cross_attention.models.factory import create_model

__all__ = ["ABLATIONS", "DualCrossAttentionViT", "DualOutput", "create_backbone", "create_model", "list_backbones"]
