"""Pretrained weights for a backbone: fetched by timm, or from a file of which nothing is executed."""

from dual_cross_attention.weights.loading import Loaded, fetch_imagenet_weights, load_glca, load_weights

__all__ = ["Loaded", "fetch_imagenet_weights", "load_glca", "load_weights"]
