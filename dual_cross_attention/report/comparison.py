"""A comparison of several runs, from their run folders alone: settings, recorded scores, curves."""

from collections.abc import Sequence
from pathlib import Path

from dual_cross_attention.errors import InputError
from dual_cross_attention.report.history import overlaid_charts
from dual_cross_attention.report.page import duration, render, write_page
from dual_cross_attention.report.settings import different
from dual_cross_attention.runs.run_summary import RunSummary, read_run
from dual_cross_attention.text import escape


def report_comparison(folders: Sequence[str | Path], output: str | Path) -> None:
    """Writes a comparison of runs as one HTML file that loads nothing from elsewhere.

    The scores are those that the runs recorded, so no dataset is needed.

    Args:
        folders: at least two run folders.
        output: the file.

    Raises:
        InputError: not a run folder, or runs of different tasks.
    """
    runs = [read_run(folder) for folder in folders]
    tasks = {run.config.task: run for run in reversed(runs)}
    if len(tasks) > 1:
        named = " and ".join(f"'{escape(run.folder)}' of {task}" for task, run in sorted(tasks.items()))
        raise InputError(f"expected runs of one task to compare, got {named}: their scores have nothing in common")
    names = _names(runs)
    page = render(
        "comparison.html.j2",
        runs=names,
        what=f"Task {runs[0].config.task}, dataset {', '.join(dict.fromkeys(run.config.dataset for run in runs))}",
        notes=_notes(dict(zip(names, runs, strict=True))),
        differences=[(each.name, *each.values) for each in different([run.config for run in runs])],
        overview=_overview(runs),
        last=_scores([run.evaluated_rows()[-1:] for run in runs]),
        best=_scores([[row] if (row := run.best_row()) else [] for run in runs]),
        history=overlaid_charts(dict(zip(names, runs, strict=True))),
    )
    write_page(Path(output), page)


def _names(runs: Sequence[RunSummary]) -> list[str]:
    """Names of the folders; paths where two have the same name."""
    names = [escape(run.name) for run in runs]
    return names if len(set(names)) == len(names) else [escape(run.folder) for run in runs]


def _notes(runs: dict[str, RunSummary]) -> list[str]:
    notes = []
    for name, run in runs.items():
        if run.diverged:
            notes.append(f"{name} diverged: a loss or gradient became NaN or infinite.")
        if not run.has_ended:
            notes.append(f"{name} has not ended: epoch {run.epochs} of {run.config.epochs}.")
    first_name, first = next(iter(runs.items()))
    for name, run in list(runs.items())[1:]:
        if run.config.dataset != first.config.dataset:
            notes.append(
                f"Other data: {name} is of dataset {run.config.dataset}, {first_name} of {first.config.dataset}."
            )
        elif run.data is None or first.data is None:
            unknown = name if run.data is None else first_name
            notes.append(
                f"{unknown} does not record its data: whether {name} has the data of {first_name} is not known."
            )
        elif differences := first.data.differences(run.data):
            there = differences[0].replace(" there", f" in {first_name}").replace(" here", f" in {name}")
            notes.append(f"Other data: {name} differs from {first_name} in {there}; their scores are not comparable.")
    return notes


def _overview(runs: Sequence[RunSummary]) -> list[list[str]]:
    splits = dict.fromkeys(name for run in runs if run.data for name in run.data.splits)
    lines = [["epochs", *(f"{run.epochs} of {run.config.epochs}" for run in runs)]]
    for name in splits:
        lines.append(
            [
                f"{name} images",
                *(
                    f"{run.data.splits[name].images:,}" if run.data and name in run.data.splits else "not recorded"
                    for run in runs
                ),
            ]
        )
    seconds = [run.train_seconds for run in runs]
    lines.append(["time of training steps", *("not recorded" if each is None else duration(each) for each in seconds)])
    for library in dict.fromkeys(library for run in runs for library in run.versions):
        lines.append([library, *(run.versions.get(library, "not recorded") for run in runs)])
    return lines


def _scores(rows: Sequence[list[dict[str, float]]]) -> list[list[str]]:
    """The scores of a row of each run; none where a run has not been evaluated yet."""
    found = [each[0] if each else {} for each in rows]
    lines = [["epoch", *(f"{row['epoch']:.0f}" if row else "not evaluated" for row in found)]]
    for name in dict.fromkeys(name for row in found for name in row if name.startswith("val/")):
        lines.append([name.removeprefix("val/"), *(f"{row[name]:.2f}" if name in row else "–" for row in found)])
    return lines
