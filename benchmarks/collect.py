"""Runs as rows of a table: what was trained and what came out, one CSV row per finished run.

    python -m benchmarks.collect runs/study/* --csv docs/results/study.csv

Scores are those of the last epoch. Rows that the file has already are kept, also of runs that are gone; a run that is
there again replaces its row (they are told apart by name). Runs that have not ended are left out, and said.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.checkpointing.checkpoints import list_checkpoints, read_progress

SETTINGS = [
    "task",
    "dataset",
    "backbone",
    "ablation",
    "glca_init",
    "img_size",
    "epochs",
    "batch_size",
    "lr",
    "lr_per_512",
    "warmup_epochs",
    "precision",
    "seed",
]
SCORES = ["val/top1", "val/top1_sa", "val/top1_glca", "val/mAP", "val/rank1", "val/mAP_sa", "val/mAP_glca"]
COLUMNS = [
    "run",
    *SETTINGS,
    "other",
    "train_images",
    "test_images",
    *SCORES,
    "train_seconds",
    "peak_memory_mb",
    "torch",
]


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
    """The row of a run; None if it has not ended."""
    run = RunFolder(path)
    if not run.config.is_file():
        return None
    config, rows = run.read_config(), run.read_metrics()
    if not rows or rows[-1]["epoch"] < config.epochs:
        return None
    defaults = type(config)()
    ignored = {
        *SETTINGS,
        "data_root",
        "weights",
        "output_dir",
        "resume",
        "num_workers",
        "checkpoint_minutes",
        "eval_every",
    }
    other = {
        name: value
        for name, value in vars(config).items()
        if name not in ignored and value != getattr(defaults, name) and name not in ("mean", "std", "format_version")
    }
    data = run.read_data()
    images = {name: split.images for name, split in data.splits.items()} if data else {}
    if not images and (checkpoints := list_checkpoints(run.checkpoints)):  # a run of format 1
        images = {"train": read_progress(checkpoints[-1]).num_images}
    seconds = sum(images["train"] / row["train/images_per_second"] for row in rows) if images else None
    return {
        "run": path.name,
        **{name: getattr(config, name) for name in SETTINGS},
        "img_size": "x".join(map(str, config.img_size)),
        "other": json.dumps(other, sort_keys=True) if other else "",
        "train_images": images.get("train"),
        "test_images": sum(images.values()) - images["train"] if data else None,
        **{name: round(rows[-1][name], 3) for name in SCORES if name in rows[-1]},
        "train_seconds": round(seconds) if seconds else None,
        "peak_memory_mb": round(rows[-1]["peak_memory_mb"]),
        "torch": _version(run.config, "torch"),
    }


def _version(config: Path, library: str) -> str:
    """As the comments above a run's settings have it."""
    lines = (line.split() for line in config.read_text().splitlines() if line.startswith("# "))
    return next((line[2] for line in lines if line[1] == library), "")


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    sys.exit(main())
