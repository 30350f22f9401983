"""Curves of a training from metrics.jsonl: loss, loss weights, learning rate, accuracy."""

from dual_cross_attention.report.charts import Chart, Line, lines_chart
from dual_cross_attention.runs.run_summary import RunSummary

BRANCHES = {"sa": "SA", "glca": "GLCA", "pwca": "PWCA"}
TESTED = {
    "val/top1": "top-1, as used",
    "val/top1_sa": "top-1, SA",
    "val/top1_glca": "top-1, GLCA",
    "val/mAP": "mAP, as used",
    "val/mAP_sa": "mAP, SA",
    "val/mAP_glca": "mAP, GLCA",
    "val/rank1": "rank-1, as used",
    "val/top1_raw": "top-1, weights without averaging",
    "val/mAP_raw": "mAP, weights without averaging",
}
CHARTS = {
    "Training loss": (
        "loss",
        {"train/loss": "combined"} | {f"train/loss_{branch}": name for branch, name in BRANCHES.items()},
    ),
    "Loss weights w": ("w", {f"train/w_{branch}": name for branch, name in BRANCHES.items()}),
    "Learning rate": ("learning rate", {"lr": "learning rate"}),
    "Training accuracy": ("%", {"train/accuracy": "SA and GLCA together, augmented training images"}),
    "Scores on the test split": ("%", TESTED),
}
"""Title → label of the vertical axis, and columns with their labels."""
COMPARED = ("train/loss", "lr", "train/accuracy", "val/top1", "val/mAP", "val/rank1")
"""Columns whose curves of several runs are drawn into one chart."""


def history_charts(run: RunSummary) -> list[Chart]:
    """The charts of one run; those without values are left out."""
    charts = []
    for title, (label, columns) in CHARTS.items():
        lines = [line for name, title_of in columns.items() if (line := _line(run, name, title_of)).x]
        if len(lines) == 2 and lines[0].y == lines[1].y:  # of SA alone, the combined loss is SA's
            del lines[1]
        if lines:
            charts.append(lines_chart(title, lines, "epoch", label))
    return charts


def overlaid_charts(runs: dict[str, RunSummary]) -> list[Chart]:
    """One chart for each of `COMPARED`, with a curve for each run."""
    titles = {name: (title, label) for title, (label, columns) in CHARTS.items() for name in columns}
    charts = []
    for name in COMPARED:
        lines = [line for label, run in runs.items() if (line := _line(run, name, label)).x]
        if lines:
            title, label = titles[name]
            what = f"{title}: {TESTED[name].partition(',')[0]}" if name in TESTED else title
            charts.append(lines_chart(what, lines, "epoch", label))
    return charts


def _line(run: RunSummary, column: str, label: str) -> Line:
    rows = [row for row in run.rows if row.get(column) is not None]
    return Line(label, [row["epoch"] for row in rows], [row[column] for row in rows])
