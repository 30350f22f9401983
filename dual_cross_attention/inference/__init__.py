"""Inference with trained models; imports nothing of training."""
