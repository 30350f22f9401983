"""MixUp and CutMix: images of a training batch are mixed, and so are their labels."""

from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms import v2

from dual_cross_attention.configs.fgvc_config import FGVCConfig


@dataclass(frozen=True)
class BatchMixing:
    """Mixes each image of a batch with the one before it, by a weight λ ~ Beta(α, α) of the whole batch.

    Sources: MixUp, arXiv 1710.09412: λ·image + (1 − λ)·other; CutMix, arXiv 1905.04899: a rectangle of area 1 − λ is
    the other image's. The label is λ·one-hot + (1 − λ)·one-hot of the other. λ and the rectangle are sampled from
    torch's generator on the CPU. If both are on, each batch has one of them, with equal probability, as in timm.

    Args:
        mixup, cutmix: α of each; 0: off.
        num_classes: C.
    """

    mixup: float
    cutmix: float
    num_classes: int

    def mix(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with other "images" (B, 3, H, W) and "labels" (B, C), which sum to 1; or as it is, if both are off.

        Distractor images are not mixed.
        """
        alphas = {v2.MixUp: self.mixup, v2.CutMix: self.cutmix}
        kinds = [kind for kind, alpha in alphas.items() if alpha]
        if not kinds:
            return batch
        kind = kinds[int(torch.randint(2, ()))] if len(kinds) == 2 else kinds[0]
        mixed = kind(alpha=alphas[kind], num_classes=self.num_classes)
        images, labels = mixed(batch["images"], batch["labels"])
        return batch | {"images": images, "labels": labels}


def batch_mixing(config: FGVCConfig, num_classes: int) -> BatchMixing:
    """The mixing of the settings; with `freeze` all, there is none."""
    mixup, cutmix = (0.0, 0.0) if config.freeze == "all" else (config.mixup, config.cutmix)
    return BatchMixing(mixup, cutmix, num_classes)
