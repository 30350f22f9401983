"""The outcome of a table's trainings: Markdown for people, and CSV with a row per run."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.errors import InputError
from dual_cross_attention.metrics.intervals import DifferenceInterval, difference_interval
from dual_cross_attention.reproduction.run_rows import COLUMNS as RUN_COLUMNS
from dual_cross_attention.reproduction.run_rows import run_row
from dual_cross_attention.reproduction.scores import TestScores
from dual_cross_attention.reproduction.sweep import Training
from dual_cross_attention.reproduction.tables import TableRow
from dual_cross_attention.runs.run_folder import RunFolder

TITLES = {"top1": "top-1 %", "mAP": "mAP %", "rank1": "rank-1 %"}
METRICS = {"fgvc": ("top1",), "reid": ("mAP", "rank1")}
"""Of a task; differences are of the first one."""
HEAD = ("row", "published", "ours", "runs", "published − baseline", "ours − baseline [95 %]", "hours", "MiB", "status")
CSV_COLUMNS = ["row", "status", *RUN_COLUMNS]


@dataclass(frozen=True)
class RowRuns:
    """A row of a table with its runs.

    Args:
        row: the row.
        trainings: by seed.
    """

    row: TableRow
    trainings: dict[int, Training]

    @property
    def done(self) -> dict[int, Training]:
        """Those that are finished, with the settings of this call."""
        return {seed: each for seed, each in self.trainings.items() if each.is_done() and not each.other_settings()}

    def status(self) -> str:
        """done, or what is missing."""
        if self.row.missing:
            return self.row.missing
        others = [(seed, other) for seed, each in self.trainings.items() if (other := each.other_settings())]
        if others:
            return "; ".join(f"seed {seed} was trained with other settings: {other}" for seed, other in others)
        failed = [(seed, reason) for seed, each in self.trainings.items() if (reason := failure_of(each))]
        if failed:
            return "; ".join(f"seed {seed} failed: {reason}" for seed, reason in failed)
        open_seeds = [f"{seed}" for seed, each in self.trainings.items() if not each.is_done()]
        return f"not finished: seed {', '.join(open_seeds)}" if open_seeds else "done"


def failure_of(training: Training) -> str | None:
    """Why a training that is not done has failed; None: it has not."""
    return None if training.is_done() else training.read_failure()


def write_summary(title: str, rows: Sequence[RowRuns], notes: Sequence[str], folder: Path, name: str) -> str:
    """Writes NAME.md and NAME.csv into a folder, atomically; returns the Markdown.

    Args:
        title: heading of the Markdown.
        rows: the rows, baselines included.
        notes: lines under the table.
    """
    done = [training.path for each in rows for training in each.done.values()]
    runs = {path: found for path in done if (found := run_row(path))}
    origin = _origin([*runs.values()])
    text = f"# {title}\n\n{_markdown(rows, runs)}\n\n" + "".join(f"- {note}\n" for note in [*notes, *origin])
    for suffix, content in ((".md", text), (".csv", _csv(rows, runs))):
        with atomic_write(folder / f"{name}{suffix}") as temporary:
            temporary.write_text(content, encoding="utf-8")
    return text


def _markdown(rows: Sequence[RowRuns], run_rows: dict[Path, dict[str, Any]]) -> str:
    """The table, mean ± standard deviation over seeds, with the interval of the difference to the baseline.

    Args:
        run_rows: of `run_row`, by run folder.
    """
    by_name = {each.row.name: each for each in rows}
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    for each in rows:
        row, baseline = each.row, by_name.get(each.row.baseline or "")
        metrics = METRICS[row.task]
        runs = [run_rows[training.path] for training in each.done.values() if training.path in run_rows]
        lines.append(
            _line(
                (
                    f"`{row.name}`",
                    " / ".join(
                        f"{row.published[metric]:.1f}" if metric in row.published else "–" for metric in metrics
                    ),
                    " / ".join(_spread([float(run[f"val/{metric}"]) for run in runs]) for metric in metrics),
                    f"{len(runs)}",
                    _published_gain(row, baseline),
                    _gain(each, baseline),
                    _spread([run["train_seconds"] / 3600 for run in runs if run["train_seconds"]], mean_only=True),
                    f"{max(run['peak_memory_mb'] for run in runs):,}" if runs else "–",
                    each.status(),
                )
            )
        )
    return "\n".join(lines)


def row_interval(row: RowRuns, baseline: RowRuns) -> DifferenceInterval | None:
    """Interval of row minus baseline in percent points, over the seeds that both have; None if there is none.

    Raises:
        InputError: the runs were tested on different images, or their scores cannot be read.
    """
    tested = {digest for each in (row, baseline) for training in each.done.values() if (digest := _test_data(training))}
    if len(tested) > 1:
        raise InputError(f"{row.row.name} and {baseline.row.name} were tested on different images")
    seeds = sorted(row.done.keys() & baseline.done.keys())
    if not seeds:
        return None
    ours, theirs = ([TestScores.read(each.done[seed].scores).images for seed in seeds] for each in (row, baseline))
    shapes = {len(scores) for scores in [*ours, *theirs]}
    if len(shapes) > 1:
        raise InputError(
            f"{row.row.name} and {baseline.row.name} were tested on different numbers of images "
            f"({', '.join(map(str, sorted(shapes)))}): train them on the same data"
        )
    valid = np.isfinite(np.stack([*ours, *theirs])).all(0)  # queries with a match, readable images
    return difference_interval(*(100 * np.stack(scores)[:, valid] for scores in (theirs, ours)))


def _test_data(training: Training) -> str | None:
    """A digest of the test images of a run; None if it has not recorded its data."""
    data = RunFolder(training.path).read_data()
    splits = sorted(data.splits.items()) if data else []
    return "-".join(split.digest for name, split in splits if name not in ("train", "distractors")) or None


def _gain(row: RowRuns, baseline: RowRuns | None) -> str:
    try:
        found = baseline and row_interval(row, baseline)
    except InputError as error:
        return f"none: {error}"
    if not found:
        return ""
    if not np.isfinite(found.low):
        return f"{found.mean:+.2f} (one seed: no interval)"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _published_gain(row: TableRow, baseline: RowRuns | None) -> str:
    metric = METRICS[row.task][0]
    both = baseline and metric in row.published and metric in baseline.row.published
    return f"{row.published[metric] - baseline.row.published[metric]:+.1f}" if both else ""


def _spread(values: list[float], mean_only: bool = False) -> str:
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.2f}"
    return mean if mean_only or len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _origin(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The data and the versions that the runs have, a line each; several where runs differ."""
    data = {f"{run['dataset']} {run['data']} ({run['train_images']} training images)" for run in runs}
    versions = {f"torch {run['torch']}, {run['precision']}" for run in runs}
    return [f"{name}: {'; '.join(sorted(found))}" for name, found in (("data", data), ("versions", versions)) if found]


def _csv(rows: Sequence[RowRuns], run_rows: dict[Path, dict[str, Any]]) -> str:
    """A row per seed; failed and unfinished ones with their status."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for each in rows:
        if each.row.missing:
            writer.writerow({"row": each.row.name, "status": each.row.missing})
            continue
        for seed, training in each.trainings.items():
            found = run_rows.get(training.path)
            if found is None and training.is_done():  # a run of other settings
                found = run_row(training.path)
            found = found or {"run": training.path.name}
            reason, other = failure_of(training), training.other_settings()
            status = "done" if training.is_done() else f"failed: {reason}" if reason else "not finished"
            status = f"other settings: {other}" if other else status
            writer.writerow({"row": each.row.name, "status": status, "seed": seed} | found)
    return text.getvalue()
