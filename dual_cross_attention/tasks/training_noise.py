"""Noise in training images and labels, which the paper compares PWCA with (Table 5)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.errors import InputError


@dataclass(frozen=True)
class TrainingNoise:
    """Adds noise to training batches, sampled from torch's generator of their device.

    Args:
        image: standard deviation of the Gaussian noise added to normalized pixels.
        label: probability, in [0, 1], that a label is replaced by another class, each with equal probability.
        num_classes: C; labels are from 0 to C − 1.
    """

    image: float
    label: float
    num_classes: int

    def __post_init__(self):
        if self.label and self.num_classes < 2:
            raise InputError(f"label noise needs at least two classes to choose from, got {self.num_classes}")

    def add(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with other "images" (B, 3, H, W) and "labels" (B,) where there is noise; the batch is unchanged."""
        changed: dict[str, Tensor] = {}
        if self.image:
            changed["images"] = batch["images"] + self.image * torch.randn_like(batch["images"])
        if self.label:
            labels = batch["labels"]
            steps = torch.randint(1, self.num_classes, labels.shape, device=labels.device)
            others = (labels + steps) % self.num_classes
            changed["labels"] = torch.where(torch.rand(labels.shape, device=labels.device) < self.label, others, labels)
        return batch | changed


def training_noise(config: TrainingConfig, num_classes: int) -> TrainingNoise:
    """The noise of the settings; with `freeze` all, images have none."""
    return TrainingNoise(0.0 if config.freeze == "all" else config.image_noise, config.label_noise, num_classes)
