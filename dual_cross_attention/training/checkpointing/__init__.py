"""Checkpoints, and the models and metrics that are written after them."""
