"""Two halves of what a model is calibrated on: fitted on one, measured on the other."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dual_cross_attention.data.names import composed


def first_half(names: Sequence[str]) -> Tensor:
    """(N,) bool: about half of the names, chosen by a hash of each, so that a name is always on the same side."""
    digests = (hashlib.blake2b(composed(name).encode("utf-8", "surrogateescape")).digest() for name in names)
    return torch.tensor([digest[0] % 2 == 0 for digest in digests], dtype=torch.bool)
