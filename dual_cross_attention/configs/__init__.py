"""Typed settings of each task, and their defaults for each dataset."""

from dual_cross_attention.configs.fgvc_config import FGVC_CONFIGS, FGVCConfig, ToyConfig
from dual_cross_attention.configs.reid_config import REID_CONFIGS, ReIDConfig, ReIDToyConfig, VehicleReIDConfig
from dual_cross_attention.configs.training_config import TrainingConfig

# By task, then by dataset; the first dataset of a task is its default.
CONFIGS: dict[str, dict[str, type[TrainingConfig]]] = {"fgvc": FGVC_CONFIGS, "reid": REID_CONFIGS}

__all__ = [
    "CONFIGS",
    "FGVC_CONFIGS",
    "REID_CONFIGS",
    "FGVCConfig",
    "ReIDConfig",
    "ReIDToyConfig",
    "ToyConfig",
    "TrainingConfig",
    "VehicleReIDConfig",
]
