"""The paper's results (arXiv 2205.02151), as `published.csv` has them. They are not measured by this project."""

import csv
from dataclasses import dataclass
from typing import Literal

from dual_cross_attention.configs.recipes import FOLDER


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """A published number; single crop, without re-ranking."""

    dataset: str
    """As of `--dataset`."""
    backbone: str
    """As in the name of a recipe (deit_tiny); "" if not stated."""
    ablation: Literal["full", "sa_only", "sa_glca", "sa_pwca"]
    """Branches that are trained, as of `--ablation`: sa_only is the paper's baseline, full is DCAL."""
    variant: str
    """What else differs from the method; "" for the method itself."""
    metric: Literal["top1", "mAP", "rank1"]
    value: float
    """In percent."""
    source: str
    """Where the paper has it, such as Table 1."""


def published_results(**wanted: str) -> list[PublishedResult]:
    """The results with these values, such as `dataset="cub", backbone="vit_base"`, in the order of the file."""
    with (FOLDER / "published.csv").open(newline="", encoding="utf-8") as file:
        results = [PublishedResult(**row | {"value": float(row["value"])}) for row in csv.DictReader(file)]
    return [each for each in results if all(getattr(each, name) == value for name, value in wanted.items())]
