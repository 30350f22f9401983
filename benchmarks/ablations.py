"""The ablation table: every ablation, several seeds, one protocol.

    python -m benchmarks.ablations --seeds 0 1 2 --output_dir runs/cub -- --dataset cub --data_root DIR
    python -m benchmarks.ablations --seeds 0 1 2 --output_dir runs/market -- \\
        --task reid --dataset market1501 --data_root DIR

What stands behind `--` goes to `dcal train` as it is; without more, it is the paper's recipe of the task. Runs that are
there already are kept, interrupted ones continue, so the command can be given again. Scores are those of the last
epoch, not of the best one: choosing an epoch on the test split would flatter.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ABLATIONS = ("sa_only", "sa_glca", "sa_pwca", "full")
TRAIN = Path(__file__).parent.parent / "train.py"


def main() -> int:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablations", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ablations"), help="a folder a run inside it")
    parser.add_argument("--json", type=Path, help="write the last rows of all runs here")
    parser.add_argument("--table_only", action="store_true", help="train nothing; read what is there")
    parser.add_argument("train_flags", nargs="*", help="flags of dcal train, behind --")
    given = parser.parse_args()

    last_rows: dict[str, list[dict[str, float]]] = {ablation: [] for ablation in given.ablations}
    for seed in given.seeds:
        for ablation in given.ablations:
            folder = given.output_dir / f"{ablation}-seed{seed}"
            flags = ["--ablation", ablation, "--seed", str(seed), "--output_dir", str(folder), *given.train_flags]
            if not given.table_only:
                print(f"== {ablation}, seed {seed}", flush=True)
                subprocess.run([sys.executable, str(TRAIN), *flags], check=True)
            metrics = folder / "metrics.jsonl"
            lines = metrics.read_text().splitlines() if metrics.is_file() else []
            evaluated = [row for row in map(json.loads, lines) if any(name.startswith("val/") for name in row)]
            last_rows[ablation] += evaluated[-1:]
    print(table(last_rows))
    if given.json:
        given.json.write_text(json.dumps(last_rows, indent=2) + "\n")
    return 0


# What is scored, by the metric that a run has: its key, and its name in the table; the first one is compared.
SCORES = {"val/top1": {"top1": "top-1"}, "val/mAP": {"mAP": "mAP", "rank1": "rank-1"}}
BRANCHES = {"_sa": "SA", "_glca": "GLCA", "": "both"}


def table(last_rows: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a row an ablation, mean ± standard deviation over the seeds."""
    keys = {key for rows in last_rows.values() for row in rows for key in row}
    best, scores = next(((key, scores) for key, scores in SCORES.items() if key in keys), ("", {}))
    scored = {
        f"val/{name}{suffix}": f"{title} {branch}"
        for name, title in scores.items()
        for suffix, branch in BRANCHES.items()
    }
    columns = ("ablation", "runs", "epoch", *scored.values(), "− sa_only", "images/s", "peak MiB", "w (SA, GLCA, PWCA)")
    lines = [_line(*columns), _line(*["---"] * len(columns))]
    baseline = [row[best] for row in last_rows.get("sa_only", [])]
    for ablation, rows in last_rows.items():
        if not rows:
            lines.append(_line(f"`{ablation}`", "0", *[""] * (len(columns) - 2)))
            continue
        gain = ""
        if baseline and ablation != "sa_only":
            gain = f"{statistics.mean(row[best] for row in rows) - statistics.mean(baseline):+.2f}"
        lines.append(
            _line(
                f"`{ablation}`",
                str(len(rows)),
                ", ".join(str(epoch) for epoch in sorted({row["epoch"] for row in rows})),
                *(_spread(rows, key) for key in scored),
                gain,
                _spread(rows, "train/images_per_second", ".1f"),
                _spread(rows, "peak_memory_mb", ".0f"),
                ", ".join(_spread(rows, f"train/w_{branch}", "+.2f") for branch in ("sa", "glca", "pwca")),
            )
        )
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(rows: list[dict[str, float]], key: str, form: str = ".2f") -> str:
    values = [row[key] for row in rows if key in row]
    if not values:
        return "–"
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form.removeprefix('+')}}" if len(values) > 1 else mean


if __name__ == "__main__":
    sys.exit(main())
