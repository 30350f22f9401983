"""What a run folder says about a run: settings, data, versions, metrics by epoch, time."""

from dataclasses import dataclass
from pathlib import Path

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.errors import InputError
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.text import escape


@dataclass(frozen=True)
class RunSummary:
    """A run folder, read.

    Args:
        folder: the run folder.
        config: the settings of the run.
        data: fingerprint of the data that it was trained on; None of runs of format 1, which did not record it.
        versions: of the libraries, by name.
        rows: the rows of metrics.jsonl, at least one.
        diverged: whether the training stopped because a loss or gradient became NaN or infinite.
    """

    folder: Path
    config: TrainingConfig
    data: DataFingerprint | None
    versions: dict[str, str]
    rows: list[dict[str, float]]
    diverged: bool

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return int(self.rows[-1]["epoch"])

    @property
    def has_ended(self) -> bool:
        return self.epochs >= self.config.epochs

    @property
    def train_seconds(self) -> float | None:
        """Seconds of all training steps, without evaluation: images by images/s, summed over epochs; None where the
        number of training images or the speed is not recorded."""
        speeds = [row.get("train/images_per_second") for row in self.rows]
        if self.data is None or "train" not in self.data.splits or not all(speeds):
            return None
        return sum(self.data.splits["train"].images / speed for speed in speeds)

    @property
    def peak_memory_mb(self) -> float | None:
        """Largest memory of the process or the device in MiB; None if it is not recorded."""
        return max((row["peak_memory_mb"] for row in self.rows if "peak_memory_mb" in row), default=None)

    @property
    def best_metric(self) -> str:
        """Column of metrics.jsonl by which the best epoch is chosen."""
        return "val/top1" if self.config.task == "fgvc" else "val/mAP"

    def evaluated_rows(self) -> list[dict[str, float]]:
        """The rows of epochs that ended with an evaluation."""
        return [row for row in self.rows if self.best_metric in row]

    def best_row(self) -> dict[str, float] | None:
        """The row of the epoch with the best score, the first one of equal scores; None before the first evaluation."""
        return max(self.evaluated_rows(), key=lambda row: row[self.best_metric], default=None)


def read_run(path: str | Path) -> RunSummary:
    """Reads a run folder.

    Raises:
        InputError: it is not a run folder, or has no finished epoch yet.
    """
    run = RunFolder(path)
    if not run.config.is_file():
        raise InputError(f"expected a run folder, which has a config.yaml, got '{escape(path)}'")
    rows = run.read_metrics()
    if not rows:
        raise InputError(f"the run '{escape(path)}' has no finished epoch yet: metrics.jsonl has no row")
    return RunSummary(run.path, run.read_config(), run.read_data(), run.read_versions(), rows, run.diverged.exists())
