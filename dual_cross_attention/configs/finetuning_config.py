"""Settings of fine-tuning that all tasks share; part of `TrainingConfig`. With their defaults, all weights are trained
alike, as in the paper."""

from dataclasses import dataclass
from typing import ClassVar

from dual_cross_attention.configs.versions import setting


@dataclass(kw_only=True)
class FineTuningConfig:
    """Settings that decide which weights a fine-tuning changes, and how fast."""

    RANGES: ClassVar[dict[str, tuple[float, float | None]]] = {"layer_decay": (0.001, 1)}

    layer_decay: float = setting(1.0, before={1: 1.0})
    """Factor on the learning rate from each block of the backbone to the one below it, such as 0.75. Heads and GLCA
    have the full rate, the last of L blocks this factor times it, the first the L-th power, and patch and position
    embedding the power L + 1. 1: the same rate everywhere."""
