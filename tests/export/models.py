"""Small models with weights of some size, and a calibration of theirs."""

from pathlib import Path
from typing import Any

import torch

from dual_cross_attention.configs import FGVCConfig, ReIDConfig
from dual_cross_attention.inference.calibration import CalibratedAnswer, Calibration
from dual_cross_attention.inference.model_files import build_model, save_model

TINY = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_kwargs": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "precision": "fp32",
    "dataset": "folder",
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
}
MEASURES = {"ece_uncalibrated": 0.2, "ece": 0.1, "nll_uncalibrated": 0.9, "nll": 0.8}
CALIBRATION = Calibration(
    {
        "sa": CalibratedAnswer(1.5, "probability", 0.25, 0.95),
        "glca": CalibratedAnswer(0.8, "probability", 0.3, 0.93),
        "together": CalibratedAnswer(2.0, "agreement", 0.2, 0.96),
    },
    keep=0.95,
    images=300,
    dataset="folder",
    split="val",
    data="00ff",
    date="2025-01-31",
    held_out={"images": 150, "kept": 0.9, **{name: MEASURES for name in ("sa", "glca", "together")}},
)


def write_model(
    path: Path, task: str, labels: list[str], calibration: Calibration | None = None, **settings: Any
) -> Path:
    """Writes a model file with weights of some size; timm's small initial ones make all images alike."""
    kind = {"fgvc": FGVCConfig, "reid": ReIDConfig}[task]
    config = kind(**TINY | {"img_size": [32, 32] if task == "fgvc" else [32, 16]} | settings)
    torch.manual_seed(0)
    model = build_model(config, len(labels), pretrained=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    state = model.state_dict()
    save_model(path, state, config, labels, {"epoch": config.epochs}, calibration=calibration)
    return path
