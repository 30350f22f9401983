"""Typed settings of every task, and the data sets' own defaults."""

from dual_cross_attention.configs.fgvc_config import FGVC_CONFIGS, FGVCConfig, ToyConfig

__all__ = ["FGVC_CONFIGS", "FGVCConfig", "ToyConfig"]
