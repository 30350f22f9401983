"""The rows of the paper's tables: for each, the settings to train with and the published result."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from dual_cross_attention.configs.recipes import is_published
from dual_cross_attention.configs.recipes.published import PublishedResult, published_results
from dual_cross_attention.errors import InputError

Scale = Literal["paper", "cpu"]

TABLES = {
    "table1": "Table 1: fine-grained classification, baseline and DCAL by backbone",
    "table2": "Table 2: re-identification, baseline and DCAL by backbone",
    "ablations": "GLCA and PWCA, each alone and both (DeiT-Tiny, CUB)",
    "queries": "choices of GLCA's local queries (DeiT-Tiny, CUB)",
    "distractors": "choices of PWCA's second image, and noise in its place (CUB: DeiT-Tiny, MSMT17: ViT-Base)",
    "depth": "M blocks of GLCA, PWCA in the last T blocks, share R of local queries (DeiT-Tiny, CUB)",
}
QUERIES = {
    "rollout": ("", {}),
    "random": ("local queries at random", {"local_queries": "random"}),
    "penultimate": ("local queries from the penultimate layer", {"local_queries": "penultimate"}),
    "local_only": ("self-attention among local tokens", {"local_queries": "local_only"}),
    "cross": ("cross-attention as in CrossViT", {"local_queries": "cross"}),
}
"""By name, the published variant and its settings."""
SECOND_IMAGES = {
    "any": ("distractor: any training image", {}),
    "other_class": ("distractor: another class", {"distractors": "other_class"}),
    "half": ("distractor: another or the same class, half each", {"distractors": "half"}),
    "same_class": ("distractor: the same class", {"distractors": "same_class"}),
    "dataset": ("distractor: another dataset", {"distractors": "dataset"}),
    "noise": ("distractor: Gaussian noise as key and value", {"distractors": "noise"}),
}
NOISES = {
    "image_noise": ("noise in the image instead of PWCA", {"image_noise": 0.5}),
    "label_noise": ("noise in the label instead of PWCA", {"label_noise": 0.1}),
}
"""The paper states no amount of noise: these are ours."""
MSMT17_BACKBONE = "vit_base"
"""The paper does not name the backbone of this ablation; its 61.6 to 64.0 mAP of Table 2 fit the ablation's numbers."""
CPU_SETTINGS = {"fgvc": {"dataset": "toy", "epochs": 2}, "reid": {"dataset": "toy", "epochs": 3, "warmup_epochs": 1}}
"""By task, the small protocol of `--scale cpu`: the synthetic dataset and its small backbone."""
PAPER_GLCA, PAPER_PWCA = {"glca_init": "random"}, {"pwca_start": 0.0}
"""What recipes say of the branches where defaults differ, for rows without recipe."""

PAPER_DEPTH, CPU_DEPTH = 12, 4
"""Blocks of the paper's backbones, and of the small one."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Args:
        name: such as cub-deit_tiny-full, unique in its table; of rows of several tables that are the same training,
            the same.
        dataset, backbone, ablation: as in `PublishedResult`.
        settings: of `dcal train`, beside recipe and ablation.
        published: results in percent, by metric: "top1", or "mAP" and "rank1".
        baseline: name of the row that differences are to; None: this is one.
        missing: why the row cannot be trained; None: it can.
    """

    name: str
    dataset: str
    backbone: str
    ablation: str
    settings: dict[str, Any] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    baseline: str | None = None
    missing: str | None = None

    @property
    def recipe(self) -> str:
        """As of `--config`."""
        return f"{RECIPE_DATASETS.get(self.dataset, self.dataset)}_{self.backbone}"

    def run_name(self, scale: Scale) -> str:
        """Rows that are the same training have the same one; in a small protocol, datasets and backbones are one."""
        return self.name.replace(f"{self.dataset}-{self.backbone}", f"toy_{self.task}") if scale == "cpu" else self.name

    @property
    def task(self) -> str:
        """fgvc or reid."""
        return "fgvc" if self.dataset in ("cub", "cars", "aircraft") else "reid"

    def arguments(self, scale: Scale) -> list[str]:
        """Arguments of `dcal train` for this row."""
        settings: dict[str, Any] = {"ablation": self.ablation, **self.settings}
        head = ["--config", self.recipe]
        if scale == "cpu":
            head = ["--task", self.task]
            of_glca = PAPER_GLCA if self.ablation in ("full", "sa_glca") else {}
            of_pwca = PAPER_PWCA if self.ablation in ("full", "sa_pwca") else {}
            settings = of_glca | of_pwca | settings | CPU_SETTINGS[self.task]
            if "pwca_blocks" in settings:
                settings["pwca_blocks"] = math.ceil(settings["pwca_blocks"] * CPU_DEPTH / PAPER_DEPTH)
        return [*head, *(word for name, value in settings.items() for word in (f"--{name}", f"{value}"))]


RECIPE_DATASETS = {"market1501": "market", "dukemtmc": "duke"}
"""Names of datasets, where recipes have other ones."""


def table_rows(table: str, patterns: Sequence[str] = (), distractor_root: str | None = None) -> list[TableRow]:
    """The rows of a table, in its order.

    Args:
        table: one of `TABLES`.
        patterns: names of rows, or patterns such as 'cub-*'; the baselines of the chosen rows are added. Empty: all.
        distractor_root: images of the row "dataset" of the table "distractors".

    Raises:
        InputError: an unknown table, or a pattern that matches no row.
    """
    if table not in TABLES:
        raise InputError(f"unknown table '{table}': there are {', '.join(TABLES)}")
    rows = _with_distractor_root(_rows_of(table), distractor_root)
    names = [row.name for row in rows]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"--rows: no row of {table} matches '{pattern}': there are {', '.join(names)}")
    if not patterns:
        return rows
    chosen = {row.name for row in rows if any(fnmatchcase(row.name, pattern) for pattern in patterns)}
    chosen |= {row.baseline for row in rows if row.name in chosen and row.baseline}
    return [row for row in rows if row.name in chosen]


def _rows_of(table: str) -> list[TableRow]:
    if table in ("table1", "table2"):
        return _of_backbones(f"Table {table[-1]}")
    rows = [_row("cub", "deit_tiny", "sa_only")]
    if table == "ablations":
        rows += [_row("cub", "deit_tiny", ablation) for ablation in ("sa_glca", "sa_pwca", "full")]
    elif table == "queries":
        rows += [_row("cub", "deit_tiny", "sa_glca", name, *variant) for name, variant in QUERIES.items()]
    elif table == "distractors":
        for dataset, backbone in (("cub", "deit_tiny"), ("msmt17", MSMT17_BACKBONE)):
            rows += [] if dataset == "cub" else [_row(dataset, backbone, "sa_only")]
            rows += [_row(dataset, backbone, "sa_pwca", name, *variant) for name, variant in SECOND_IMAGES.items()]
            rows += [_row(dataset, backbone, "sa_only", name, *variant) for name, variant in NOISES.items()]
    else:
        rows += [_row("cub", "deit_tiny", ablation) for ablation in ("sa_glca", "sa_pwca", "full")]  # M 1, T 12, R 10 %
        rows += [_row("cub", "deit_tiny", "sa_glca", f"M{m}", None, {"glca_blocks": m}) for m in (2, 3)]
        rows += [_row("cub", "deit_tiny", "sa_pwca", f"T{t}", None, {"pwca_blocks": t}) for t in (1, 3, 6, 9)]
        rows += [_row("cub", "deit_tiny", "full", f"R{r}", None, {"local_ratio": r / 100}) for r in (5, 20, 30)]
    return rows


def _of_backbones(source: str) -> list[TableRow]:
    """Baseline and DCAL of every dataset and backbone of a table."""
    found = published_results(source=source)
    keys = dict.fromkeys((each.dataset, each.backbone, each.ablation) for each in found)
    return [_row(*key, source=source) for key in keys]


def _row(
    dataset: str,
    backbone: str,
    ablation: str,
    name: str = "",
    variant: str | None = "",
    settings: dict[str, Any] | None = None,
    source: str | None = None,
) -> TableRow:
    """A row; `variant` as in `PublishedResult`, None: nothing is published of it."""
    if not settings:  # the method itself, which has its plain name in every table
        name = ""
    recipe = RECIPE_DATASETS.get(dataset, dataset)
    missing = None
    if not is_published(recipe, backbone):
        missing = f"there is no recipe {recipe}_{backbone}: the backbone is not supported"
    is_baseline = ablation == "sa_only" and not name
    return TableRow(
        "-".join(part for part in (dataset, backbone, ablation, name) if part),
        dataset,
        backbone,
        ablation,
        settings or {},
        {} if variant is None else _published(dataset, backbone, ablation, variant, source),
        None if is_baseline else f"{dataset}-{backbone}-sa_only",
        missing,
    )


def _published(dataset: str, backbone: str, ablation: str, variant: str, source: str | None) -> dict[str, float]:
    def fits(each: PublishedResult) -> bool:
        return each.backbone == backbone or (not each.backbone and backbone == MSMT17_BACKBONE)

    found = published_results(dataset=dataset, ablation=ablation, variant=variant)
    return {each.metric: each.value for each in found if fits(each) and source in (None, each.source)}


def _with_distractor_root(rows: list[TableRow], distractor_root: str | None) -> list[TableRow]:
    changed = []
    for row in rows:
        if row.settings.get("distractors") == "dataset":
            if distractor_root is None:
                row = replace(row, missing=row.missing or "it needs --distractor_root, a folder of other images")
            else:
                row = replace(row, settings=row.settings | {"distractor_root": distractor_root})
        changed.append(row)
    return changed
