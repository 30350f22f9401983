"""The paper's numbers for the setting of a run, where the run has the setting of a recipe."""

from dataclasses import dataclass

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.configs.recipes import BACKBONES, DATASETS, is_published, read_config
from dual_cross_attention.configs.recipes.published import PublishedResult, published_results
from dual_cross_attention.report.settings import OF_THE_MACHINE, RESOLVED, different

SPLITS = {
    "cub": (200, 5794),
    "cars": (196, 8041),
    "aircraft": (100, 3333),
    "market1501": (751, 3368),
    "dukemtmc": (702, 2228),
    "msmt17": (1041, 11659),
    "veri776": (575, 1678),
}
"""Of the datasets as they are published: training classes or identities, and test images or queries."""


@dataclass(frozen=True)
class Published:
    """What the paper reports for the recipe of a run.

    Args:
        results: by metric ("top1", "mAP", "rank1"); of the paper's model with these branches.
        differences: what of the run differs from the paper's setting, a line each. Only if there is none, the numbers
            are comparable.
    """

    results: dict[str, PublishedResult]
    differences: list[str]

    @property
    def is_comparable(self) -> bool:
        return not self.differences


def published_for(config: TrainingConfig, classes: int, tested: int) -> Published | None:
    """The paper's numbers for a dataset, backbone and branches; None if the paper has none.

    Args:
        config: the settings of the run.
        classes: number of classes or training identities of the model.
        tested: number of test images, or of queries in re-identification.
    """
    recipe = recipe_of(config)
    if recipe is None:
        return None
    short = next(name for name, full in BACKBONES.items() if full == config.backbone)
    found = published_results(dataset=config.dataset, backbone=short, ablation=config.ablation, variant="")
    if not found:
        return None
    without = OF_THE_MACHINE | RESOLVED | {"seed", "batch_size", "gradient_accumulation_steps", "lr", "lr_per_512"}
    lines = [
        f"{name}: {run} instead of {paper}" for name, (run, paper) in different([config, recipe], frozenset(without))
    ]
    for name, value in (("effective batch size", effective_batch), ("peak learning rate", peak_lr)):
        if value(config) != value(recipe):
            lines.append(f"{name}: {value(config):.4g} instead of {value(recipe):.4g}")
    for name, here, there in zip(
        ("classes or training identities", "test images or queries"),
        (classes, tested),
        SPLITS[config.dataset],
        strict=True,
    ):
        if here != there:
            lines.append(f"other data: {here:,} {name} instead of {there:,}")
    return Published({each.metric: each for each in found}, lines)


def recipe_of(config: TrainingConfig) -> TrainingConfig | None:
    """The settings of the recipe for a run's dataset, backbone and branches; None if there is no such recipe."""
    short = next((name for name, full in BACKBONES.items() if full == config.backbone), None)
    for dataset in DATASETS:
        if short and is_published(dataset, short) and read_config(dataset)[1]["dataset"] == config.dataset:
            return parse_config(["--config", f"{dataset}_{short}", "--ablation", config.ablation])
    return None


def effective_batch(config: TrainingConfig) -> int:
    """Images of an optimizer step on one rank."""
    return config.batch_size * config.gradient_accumulation_steps


def peak_lr(config: TrainingConfig) -> float:
    """Peak learning rate on one rank, rounded to 6 digits."""
    lr = config.lr_per_512 * effective_batch(config) / 512 if config.lr is None else config.lr
    return float(f"{lr:.6g}")
