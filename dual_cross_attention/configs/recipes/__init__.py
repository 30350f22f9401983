"""Recipes: the paper's settings, a YAML file for each dataset; the backbone is part of a recipe's name."""

import difflib
from pathlib import Path
from typing import Any

from dual_cross_attention.configs.yaml_files import read_yaml
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

FOLDER = Path(__file__).parent
DATASETS = ("cub", "cars", "aircraft", "market", "duke", "msmt17", "veri776")
BACKBONES = {
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "vit_base": "vit_base_patch16_224.augreg_in21k",
}
"""timm's names of the plain ViTs in the paper's Tables 1 and 2."""
IN_WORDS = f"DATASET_BACKBONE with one of {', '.join(DATASETS)} and one of {', '.join(BACKBONES)}"


def recipe_names() -> list[str]:
    """All recipes, such as cub_deit_tiny, usable as `--config NAME`; cub alone is one without a backbone."""
    return [f"{dataset}_{backbone}" for dataset in DATASETS for backbone in BACKBONES]


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
        return path, read_yaml(path) | ({"backbone": BACKBONES[backbone]} if backbone else {})
    close = difflib.get_close_matches(name, recipe_names(), n=1)
    raise InputError(
        f"no config file '{escape(name)}': {f'did you mean {close[0]}? ' if close else ''}expected a YAML file, or "
        f"a recipe, {IN_WORDS}"
    )
