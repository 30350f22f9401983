"""Fingerprint of a loaded model: equal if and only if the same image gives the same features and predictions.

Feature files and resumed outputs compare it with the fingerprint of the current model. It does not include
calibration, precision and device.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest_weights(state: Mapping[str, Tensor]) -> str:
    """A hash over names, dtypes, shapes and values of a state dict."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(weights: str, settings: Mapping[str, Any]) -> str:
    """Hashes the digest of the weights and all else that determines the output (JSON values) into 32 hex digits."""
    text = json.dumps({"weights": weights, **settings}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
