"""Runs as rows of a table: what was trained and what came out, one CSV row per finished run.

    python -m benchmarks.collect runs/study/* --csv docs/results/study.csv

Scores are those of the last epoch. Rows that the file has already are kept, also of runs that are gone; a run that is
there again replaces its row (they are told apart by name). Runs that have not ended are left out, and said.
"""

import argparse
import csv
import sys
from pathlib import Path

from dual_cross_attention.reproduction.run_rows import COLUMNS, run_row
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.checkpointing.checkpoints import list_checkpoints, read_progress


def main() -> int:
    """Read the runs, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--csv", type=Path, required=True, help="the table; rows are added to it")
    given = parser.parse_args()
    rows = {row["run"]: row for row in _read(given.csv)}
    for path in given.runs:
        row = collect(path)
        if row is None:
            print(f"{path}: not ended, left out", file=sys.stderr)
        else:
            rows[path.name] = row
    given.csv.parent.mkdir(parents=True, exist_ok=True)
    with given.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))
    print(f"{given.csv}: {len(rows)} runs")
    return 0


def collect(path: Path) -> dict[str, object] | None:
    """The row of a run, see `run_row`; None if it has not ended."""
    row, checkpoints = run_row(path), list_checkpoints(RunFolder(path).checkpoints)
    if row and not row["train_images"] and checkpoints:  # a run of format 1, which has no fingerprint
        images = read_progress(checkpoints[-1]).num_images
        seconds = sum(images / each["train/images_per_second"] for each in RunFolder(path).read_metrics())
        row |= {"train_images": images, "train_seconds": round(seconds)}
    return row


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    sys.exit(main())
