"""What a run leaves for its user: metrics.jsonl, the last and the best model."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.model_files import save_model
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.checkpointing.checkpoints import checkpoint_name, read_state, verify


class Results:
    """Writes an epoch's results once its checkpoint is there. What a full disk has kept from being written is kept.

    Args:
        folder: where they go.
        config: the settings, for the models' headers.
        classes: class names, for the same.
        data: what the run is trained on, for the same.

    Attributes:
        rows: of metrics.jsonl that are still to be written.
    """

    def __init__(
        self, folder: RunFolder, config: TrainingConfig, classes: list[str], data: DataFingerprint | None = None
    ):
        self.folder, self.config, self.classes, self.data = folder, config, classes, data
        self.rows: list[dict[str, float]] = []
        self._best_row: dict[str, float] | None = None
        self._best: tuple[dict[str, Tensor], dict[str, float]] | None = None

    def add(self, row: dict[str, float], is_best: bool) -> None:
        """The row of the epoch whose state `write` will be given."""
        self.rows = [*self.rows, row]
        self._best_row = row if is_best else None

    def write(self, state: dict[str, Any]) -> None:
        """All that was added since the last time that this worked.

        Args:
            state: of the checkpoint after the epoch.

        Raises:
            OSError, SafetensorError: it cannot be written.
        """
        model = _model_of(state)
        if self._best_row:
            self._best = model, self._best_row
        self._save(self.folder.last, model, self.rows[-1])
        if self._best:
            self._save(self.folder.best, *self._best)
        for row in self.rows:
            self.folder.write_metrics(row)
        self.rows, self._best, self._best_row = [], None, None

    def _save(self, path: Path, model: dict[str, Tensor], row: dict[str, float]) -> None:
        save_model(path, model, self.config, self.classes, row, self.data)


def complete_results(
    folder: RunFolder, config: TrainingConfig, progress: dict[str, Any], data: DataFingerprint | None = None
) -> None:
    """Write the models and rows that are missing after a checkpoint: the run was killed, or the disk was full.

    Models come from the checkpoints of their epochs, as long as those exist.

    Args:
        folder: of the run, locked.
        config: the settings in its config.yaml, for the models' headers.
        progress: of the checkpoint that the run resumes from, see `read_progress`.
        data: the fingerprint of the data, for the models' headers.

    Raises:
        InputError: a checkpoint holds something else.
        OSError, SafetensorError: it cannot be written.
    """
    written = folder.read_metrics()
    missing = [row for row in progress["rows"] if row not in written]
    newest = next((row for row in (*written, *missing) if row["epoch"] == progress["epoch"]), None)
    for path, row in ((folder.last, newest), (folder.best, progress["best"])):
        if row and _metrics_in(path) != row:
            source = folder.checkpoints / checkpoint_name(row["epoch"])
            if verify(source) is None:
                save_model(path, _model_of(read_state(source)), config, progress["classes"], row, data)
    for row in missing:  # last: as long as they are not there, the rest is looked at again
        folder.write_metrics(row)


def _model_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """The model's part of a checkpoint's state, under its own names."""
    inner = "model."
    try:
        return {name[len(inner) :]: value for name, value in state["task"].items() if name.startswith(inner)}
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError("a checkpoint of this run holds no model") from error


def _metrics_in(path: Path) -> dict[str, float] | None:
    """The row in a model file's header; None if there is no such file, or it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["metrics"])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError):
        return None


def is_better(row: dict[str, Any], best: dict[str, Any], metric: str) -> bool:
    """Whether an epoch is better than the best so far; one that was not evaluated never is."""
    return metric in row and (metric not in best or row[metric] > best[metric])
