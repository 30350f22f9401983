"""Settings of fine-tuning that all tasks share; part of `TrainingConfig`. With their defaults, all weights are trained
alike, as in the paper."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dual_cross_attention.configs.versions import setting
from dual_cross_attention.errors import InputError


@dataclass(kw_only=True)
class FineTuningConfig:
    """Settings that decide which weights a fine-tuning changes, and how fast."""

    RANGES: ClassVar[dict[str, tuple[float, float | None]]] = {
        "layer_decay": (0.001, 1),
        "ema": (0, 0.999999),
        "lora_rank": (0, None),
    }

    layer_decay: float = setting(1.0, before={1: 1.0})
    """Factor on the learning rate from each block of the backbone to the one below it, such as 0.75. Heads and GLCA
    have the full rate, the last of L blocks this factor times it, the first the L-th power, and patch and position
    embedding the power L + 1. 1: the same rate everywhere."""
    freeze: int | Literal["all"] = setting(0, before={1: 0})
    """Freeze the patch and position embedding and the first N blocks of the backbone: their weights do not change, and
    they have no dropout and no stochastic depth. 0: train everything. all: train heads and GLCA only, on features of
    the frozen backbone that are computed once; without PWCA and without random augmentation."""

    ema: float | None = setting(None, before={1: None})
    """Decay of an exponential moving average of the weights, updated after each step, such as 0.999. The average is
    evaluated and saved as the run's model; the weights themselves are evaluated too, and saved beside
    (last_raw.safetensors). null: no average."""

    lora_rank: int = setting(0, before={1: 0})
    """Rank R of LoRA, such as 8: the backbone is frozen except for its head, and each linear layer of its blocks gets
    a trained update of rank R. GLCA's blocks get one too where they are copies (glca_init last_block), and are trained
    in full otherwise. Saved models have the updates merged. 0: no LoRA."""

    def _check_fine_tuning(self) -> None:
        if self.freeze != "all" and self.freeze < 0:
            raise InputError(f"freeze: expected a number of blocks of at least 0, or all; got {self.freeze}")
        if self.freeze == "all" and self.lora_rank:
            raise InputError(
                f"lora_rank {self.lora_rank} trains the backbone's blocks, and freeze all freezes them: take one"
            )
