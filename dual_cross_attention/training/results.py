"""What a run leaves for its user: metrics.jsonl, the last and the best model."""

from pathlib import Path
from typing import Any

from torch import Tensor

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.training.checkpoints import read_progress, read_state
from dual_cross_attention.training.model_files import save_model
from dual_cross_attention.training.run_folder import RunFolder


class Results:
    """Writes an epoch's results once its checkpoint is there. What a full disk has kept from being written is kept.

    Args:
        folder: where they go.
        config: the settings, for the models' headers.
        classes: class names, for the same.
    """

    def __init__(self, folder: RunFolder, config: TrainingConfig, classes: list[str]):
        self.folder, self.config, self.classes = folder, config, classes
        self._rows: list[dict[str, float]] = []
        self._best_row: dict[str, float] | None = None
        self._best: tuple[dict[str, Tensor], dict[str, float]] | None = None

    def add(self, row: dict[str, float], is_best: bool) -> None:
        """The row of the epoch whose state `write` will be given."""
        self._rows.append(row)
        self._best_row = row if is_best else None

    def write(self, state: dict[str, Any]) -> None:
        """All that was added since the last time that this worked.

        Args:
            state: of the checkpoint after the epoch.

        Raises:
            OSError, SafetensorError: it cannot be written.
        """
        inner = "model."
        model = {name[len(inner) :]: value for name, value in state["task"].items() if name.startswith(inner)}
        if self._best_row:
            self._best = model, self._best_row
        self._save(self.folder.last, model, self._rows[-1])
        if self._best:
            self._save(self.folder.best, *self._best)
        for row in self._rows:
            self.folder.write_metrics(row)
        self._rows, self._best, self._best_row = [], None, None

    def _save(self, path: Path, model: dict[str, Tensor], row: dict[str, float]) -> None:
        save_model(path, model, self.config, self.classes, row)


def complete_results(folder: RunFolder, config: TrainingConfig, checkpoint: Path) -> None:
    """Writes what a run was about to write after a checkpoint when it was killed.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    progress = read_progress(checkpoint)
    row = progress.get("row")
    if row is None:  # in the middle of an epoch: results came with the checkpoint before
        return
    written = folder.best.is_file() and folder.last.is_file() and row in folder.read_metrics()  # rows come last
    if written:
        return
    results = Results(folder, config, progress["classes"])
    results.add(row, progress["best"].get("epoch") == row["epoch"])
    results.write(read_state(checkpoint))


def is_better(row: dict[str, Any], best: dict[str, Any], metric: str) -> bool:
    """Whether an epoch is better than the best so far; one that was not evaluated never is."""
    return metric in row and (metric not in best or row[metric] > best[metric])
