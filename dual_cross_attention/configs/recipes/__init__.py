"""Recipes: the paper's settings, a YAML file for each dataset; the backbone is part of a recipe's name.

The backbones in `OURS` are not in the paper: their recipes have its settings, and no published result.
"""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dual_cross_attention.configs.yaml_files import read_yaml
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

FOLDER = Path(__file__).parent
CLASSIFIED = ("cub", "cars", "aircraft")
DATASETS = (*CLASSIFIED, "market", "duke", "msmt17", "veri776")
BACKBONES = {
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "vit_base": "vit_base_patch16_224.augreg_in21k",
    "r50_vit_base": "vit_base_r50_s16_224.orig_in21k",
    "swin_tiny": "swin_tiny_patch4_window7_224.ms_in1k",
    "cait_xs24": "cait_xs24_384.fb_dist_in1k",
}
"""timm's names of the backbones in the paper's Tables 1 and 2."""
PUBLISHED_ON = {"r50_vit_base": CLASSIFIED, "swin_tiny": ("cub", "msmt17"), "cait_xs24": ("cub",)}
"""The datasets that the paper has a backbone on; of those that are not here, all."""

PUBLISHED_WITH: dict[str, dict[str, Any]] = {"swin_tiny": {"ablation": "sa_pwca"}}
"""Settings with which the paper has results of a backbone, where they are not those of the dataset."""


@dataclass(frozen=True)
class Modern:
    """A backbone of ours, not the paper's.

    Args:
        backbone: timm's name.
        datasets: whose input size is a multiple of its patch.
        kwargs: the setting `backbone_kwargs`.
    """

    backbone: str
    datasets: tuple[str, ...] = DATASETS
    kwargs: dict[str, Any] = field(default_factory=dict)


# DINOv3 is trained with a class token, which the method reads; timm's default for it is the mean of the patch tokens.
CLASS_TOKEN = {"global_pool": "token"}
OURS = {
    "dinov2_small": Modern("vit_small_patch14_reg4_dinov2.lvd142m", CLASSIFIED),
    "dinov2_base": Modern("vit_base_patch14_reg4_dinov2.lvd142m", CLASSIFIED),
    "dinov3_small": Modern("vit_small_patch16_dinov3.lvd1689m", kwargs=CLASS_TOKEN),
    "dinov3_base": Modern("vit_base_patch16_dinov3.lvd1689m", kwargs=CLASS_TOKEN),
    "eva02_small": Modern("eva02_small_patch14_336.mim_in22k_ft_in1k", CLASSIFIED),
    "eva02_base": Modern("eva02_base_patch14_448.mim_in22k_ft_in22k_in1k", CLASSIFIED),
}
IN_WORDS = (
    f"DATASET_BACKBONE with one of {', '.join(DATASETS)} and one of {', '.join(BACKBONES)}, or, not of the paper, "
    f"{', '.join(OURS)}"
)


def recipe_names() -> list[str]:
    """All recipes, such as cub_deit_tiny, usable as `--config NAME`; cub alone is one without a backbone."""
    return [
        f"{dataset}_{backbone}" for dataset in DATASETS for backbone in (*BACKBONES, *OURS) if _fits(dataset, backbone)
    ]


def is_published(dataset: str, backbone: str) -> bool:
    """Whether there is a recipe of the paper for a dataset, such as cub, and a backbone, such as deit_tiny."""
    return dataset in DATASETS and backbone in BACKBONES and dataset in PUBLISHED_ON.get(backbone, DATASETS)


def _fits(dataset: str, backbone: str) -> bool:
    return is_published(dataset, backbone) or (backbone in OURS and dataset in OURS[backbone].datasets)


def _backbone_settings(backbone: str) -> dict[str, Any]:
    if not backbone:
        return {}
    if backbone in BACKBONES:
        return {"backbone": BACKBONES[backbone]} | PUBLISHED_WITH.get(backbone, {})
    ours = OURS[backbone]
    return {"backbone": ours.backbone} | ({"backbone_kwargs": dict(ours.kwargs)} if ours.kwargs else {})


def read_config(name: str) -> tuple[Path, dict[str, Any]]:
    """Reads the settings of `--config NAME`: of a YAML file, or of a recipe if there is no such file.

    Returns:
        The file that was read, and its settings by name.

    Raises:
        InputError: neither exists, or the file has other content.
    """
    if Path(name).is_file():
        return Path(name), read_yaml(Path(name))
    dataset, _, backbone = name.partition("_")
    if name in (*DATASETS, *recipe_names()):
        path = FOLDER / f"{dataset}.yaml"
        return path, read_yaml(path) | _backbone_settings(backbone)
    close = difflib.get_close_matches(name, recipe_names(), n=1)
    raise InputError(
        f"no config file '{escape(name)}': {f'did you mean {close[0]}? ' if close else ''}expected a YAML file, or "
        f"a recipe, {IN_WORDS}"
    )
