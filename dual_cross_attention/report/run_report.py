"""The report of one run: evaluates one of its models on the test split, and writes a page."""

from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from dual_cross_attention.explanation.maps import MAP_TITLES
from dual_cross_attention.inference.model_files import BEST_ON_TEST
from dual_cross_attention.report.classifier_report import classifier_values
from dual_cross_attention.report.history import history_charts
from dual_cross_attention.report.opened_run import OpenedRun, WhichModel, open_run
from dual_cross_attention.report.page import duration, render, write_page
from dual_cross_attention.report.published import Published, published_for
from dual_cross_attention.report.retrieval_report import retrieval_values
from dual_cross_attention.report.settings import all_settings, from_defaults, shown
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.runs.run_summary import RunSummary, read_run

BRANCHES = {"_sa": "SA", "_glca": "GLCA", "": "SA + GLCA"}
METRICS = {"top1": "top-1 %", "top5": "top-5 %", "mAP": "mAP %"} | {f"rank{k}": f"rank-{k} %" for k in (1, 5, 10)}
MOST_UNREADABLE = 200
"""Unreadable images that a report names."""
RESULTS = {"fgvc": classifier_values, "reid": retrieval_values}
"""By task: evaluates the model; see `classifier_values`."""


def report_run(
    run: str | Path,
    output: str | Path,
    model: WhichModel = "best",
    data_root: str | None = None,
    split: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    console: Console | None = None,
) -> int:
    """Writes a report of a run as one HTML file that loads nothing from elsewhere.

    Args:
        run: a run folder.
        output: the file.
        model: which model of the run is evaluated.
        data_root, split, device, precision, batch_size, num_workers: as of `inference.evaluation.evaluate`.
        console: shows notes, warnings and progress; None: not shown.

    Returns:
        Number of test images that could not be read, the first `MOST_UNREADABLE` of which the report names.

    Raises:
        InputError: not a run folder, no such model, or test images that cannot be found.
    """
    console = console or Console(quiet=True)
    summary = read_run(run)
    opened = open_run(RunFolder(run), model, data_root, split, device, precision, batch_size, num_workers, console)
    template, metrics, values = RESULTS[summary.config.task](opened, console)
    published = published_for(summary.config, len(opened.loaded.labels), _tested(opened))
    page = render(
        template,
        run=summary,
        what=_what(summary),
        notes=_notes(summary, opened),
        chosen=_chosen(opened, model, summary),
        scores=_scores(summary, opened, metrics, published),
        published=published,
        metric_titles={name: title.removesuffix(" %") for name, title in METRICS.items()},
        overview=_overview(summary, opened),
        differences=[(each.name, *each.values) for each in from_defaults(summary.config)],
        settings=all_settings(summary.config),
        history=history_charts(summary),
        unreadable=list(islice(opened.unreadable.found.items(), MOST_UNREADABLE)),
        number_unreadable=len(opened.unreadable),
        map_title=MAP_TITLES[opened.default_map],
        **values,
    )
    write_page(Path(output), page)
    return len(opened.unreadable)


def _tested(opened: OpenedRun) -> int:
    """Number of test images, or of queries in re-identification."""
    return opened.setup.split.num_queries if opened.loaded.task == "reid" else opened.setup.num_test


def _what(run: RunSummary) -> str:
    kind = "Fine-grained classification" if run.config.task == "fgvc" else "Re-identification"
    return f"{kind}: {run.config.backbone}, branches {run.config.ablation}, on {run.config.dataset}"


def _notes(run: RunSummary, opened: OpenedRun) -> list[str]:
    notes = []
    if run.diverged:
        notes.append("The training diverged: a loss or gradient became NaN or infinite.")
    if not run.has_ended:
        notes.append(f"The run has not ended: epoch {run.epochs} of {run.config.epochs}.")
    notes += [f"Not the test data of the run: {difference}" for difference in opened.differences]
    if len(opened.unreadable):
        notes.append(f"{len(opened.unreadable)} test images could not be read; see the end of this page.")
    return notes


def _chosen(opened: OpenedRun, model: WhichModel, run: RunSummary) -> str:
    where = f" Epoch {opened.epoch} of {run.config.epochs}." if opened.epoch else ""
    if opened.loaded.chosen_by == BEST_ON_TEST:
        return (
            f"Shown is the best model.{where} Its epoch was chosen by its score on this test split, so the scores are "
            "optimistic. --model last reports the last epoch, which is not chosen."
        )
    return f"Shown is the {model} model.{where} Its epoch was not chosen by its score."


def _scores(
    run: RunSummary, opened: OpenedRun, metrics: dict[str, float], published: Published | None
) -> dict[str, Any]:
    """The table of branches, beside the paper's numbers where they are comparable."""
    names = [name for name in METRICS if name in metrics]
    several = len(opened.loaded.model.test_branches) > 1
    branches = {
        suffix: title for suffix, title in BRANCHES.items() if f"{names[0]}{suffix}" in metrics and (suffix or several)
    }
    used = "" if several else "_sa"  # the answer that the paper reports
    is_beside = published is not None and published.is_comparable
    rows = []
    for suffix, title in branches.items():
        values = [f"{metrics[f'{name}{suffix}']:.2f}" if f"{name}{suffix}" in metrics else "" for name in names]
        if is_beside:
            found = published.results if suffix == used else {}
            values += [f"{found[name].value:.1f}" if name in found else "" for name in published.results]
        rows.append([title, *values])
    beside = [f"paper: {METRICS[name]}" for name in published.results] if is_beside else []
    images = f"{opened.setup.num_test - len(opened.unreadable):,} test images of {run.config.dataset}"
    queries = f", {metrics['valid_queries']:,} queries with a match" if "valid_queries" in metrics else ""
    return {
        "caption": f"{images}{queries}",
        "head": ["branch", *(METRICS[name] for name in names), *beside],
        "rows": rows,
    }


def _overview(run: RunSummary, opened: OpenedRun) -> list[tuple[str, str]]:
    config, loaded = run.config, opened.loaded
    kind = "classes" if config.task == "fgvc" else "training identities"
    lines = [
        ("task", config.task),
        ("dataset", f"{config.dataset}, {len(loaded.labels):,} {kind}"),
        ("test images read from", f"{opened.setup.config.data_root or 'memory (synthetic)'}"),
    ]
    if run.data is None:
        lines.append(("data fingerprint", "not recorded (a run of format 1)"))
    else:
        lines += [
            (f"{name} images", f"{split.images:,}, fingerprint {split.digest}")
            for name, split in run.data.splits.items()
        ]
    pixels = loaded.transform
    lines += [
        ("backbone", config.backbone),
        ("branches in training", config.ablation),
        ("initial weights", config.weights),
        (
            "images",
            ("cropped to the aspect ratio of the input, " if pixels.keep_aspect else "")
            + f"resized to {pixels.resize[0]}×{pixels.resize[1]}, cropped to {pixels.img_size[0]}×{pixels.img_size[1]} "
            f"(height×width), mean {shown(list(pixels.mean))}, std {shown(list(pixels.std))}",
        ),
        ("epochs", f"{run.epochs} of {config.epochs}"),
        ("seed", f"{config.seed}"),
        ("precision in training", config.precision),
        ("time of training steps", "not recorded" if run.train_seconds is None else duration(run.train_seconds)),
    ]
    if run.peak_memory_mb is not None:
        lines.append(("peak memory", f"{run.peak_memory_mb:,.0f} MiB"))
    lines.append(("versions", ", ".join(f"{name} {number}" for name, number in run.versions.items())))
    lines.append(("this report", f"evaluated on {loaded.device.type} in {loaded.precision}"))
    return lines
