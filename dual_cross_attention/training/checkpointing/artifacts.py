"""Artifacts of a run: metrics.jsonl, last.safetensors and best.safetensors.

In a run with an average of the weights (EMA), these two files have the average, as timm loads it from its checkpoints,
and last_raw.safetensors and best_raw.safetensors the weights themselves.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.model_files import save_model
from dual_cross_attention.models.lora import merge_lora
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.checkpointing.checkpoints import checkpoint_name, read_state, verify
from dual_cross_attention.training.checkpointing.train_progress import TrainProgress

RAW = "_raw"
"""End of the names of metrics of the weights themselves, where there is an average of them."""
Weights = dict[str, Tensor]


class ArtifactWriter:
    """Writes metrics and models of an epoch after its checkpoint. What a full disk refused is written the next time.

    Args:
        folder: of the run.
        config: settings, for the headers of model files.
        classes: class names, for the same.
        data: fingerprint of the training data, for the same.

    Attributes:
        rows: rows of metrics.jsonl that are not written yet.
    """

    def __init__(
        self, folder: RunFolder, config: TrainingConfig, classes: list[str], data: DataFingerprint | None = None
    ):
        self.folder, self.config, self.classes, self.data = folder, config, classes, data
        self.rows: list[dict[str, float]] = []
        self._best_row: dict[str, float] | None = None
        self._best: tuple[dict[str, Any], dict[str, float]] | None = None

    def add(self, row: dict[str, float], is_best: bool) -> None:
        """Adds the row of the epoch whose state `write` gets next."""
        self.rows = [*self.rows, row]
        self._best_row = row if is_best else None

    def write(self, state: dict[str, Any]) -> None:
        """Writes everything added since the last successful call.

        Args:
            state: of the checkpoint after the epoch.

        Raises:
            OSError, SafetensorError: it cannot be written.
        """
        if self._best_row:
            self._best = state, self._best_row
        self._save("last", state, self.rows[-1])
        if self._best:
            self._save("best", *self._best)
        for row in self.rows:
            self.folder.write_metrics(row)
        self.rows, self._best, self._best_row = [], None, None

    def _save(self, name: str, state: dict[str, Any], row: dict[str, float]) -> None:
        for path, model, metrics in _model_files(self.folder, name, state, row):
            save_model(path, model, self.config, self.classes, metrics, self.data)


def complete_results(
    folder: RunFolder, config: TrainingConfig, progress: TrainProgress, data: DataFingerprint | None = None
) -> None:
    """Writes the artifacts that are missing after a checkpoint, since the run was killed or the disk was full.

    Models are taken from the checkpoints of their epochs, where those still exist.

    Args:
        folder: of the run, locked.
        config: the settings in its config.yaml, for the models' headers.
        progress: of the checkpoint that the run resumes from.
        data: the fingerprint of the data, for the models' headers.

    Raises:
        InputError: a checkpoint holds no model.
        OSError, SafetensorError: it cannot be written.
    """
    written = folder.read_metrics()
    missing = [row for row in progress.rows if row not in written]
    newest = next((row for row in (*written, *missing) if row["epoch"] == progress.state.epoch), None)
    for name, row in (("last", newest), ("best", progress.state.best)):
        if row and not _is_written(folder, name, row, config.ema is not None):
            source = folder.checkpoints / checkpoint_name(row["epoch"])
            if verify(source) is None:
                for path, model, metrics in _model_files(folder, name, read_state(source), row):
                    save_model(path, model, config, progress.classes, metrics, data)
    for row in missing:  # last: as long as a row is missing, the next start checks the models again
        folder.write_metrics(row)


def _model_files(
    folder: RunFolder, name: str, state: dict[str, Any], row: dict[str, float]
) -> list[tuple[Path, Weights, dict[str, float]]]:
    """The model files of a checkpoint's state: path, weights, and metrics of these weights.

    Args:
        name: "last" or "best".
        row: of metrics.jsonl, of the epoch.
    """
    model = _model_of(state)
    if "ema" not in state:
        return [(getattr(folder, name), model, row)]
    return [
        (getattr(folder, name), merge_lora(state["ema"]), row),
        (getattr(folder, f"{name}{RAW}"), model, _raw_metrics(row)),
    ]


def _is_written(folder: RunFolder, name: str, row: dict[str, float], averaged: bool) -> bool:
    """Whether the model files of an epoch are there; `averaged`: also those of the weights themselves."""
    raw = _metrics_in(getattr(folder, f"{name}{RAW}")) if averaged else _raw_metrics(row)
    return _metrics_in(getattr(folder, name)) == row and raw == _raw_metrics(row)


def _raw_metrics(row: dict[str, float]) -> dict[str, float]:
    """A row with the metrics of the weights themselves in place of those of their average."""
    return {name: row.get(f"{name}{RAW}", value) for name, value in row.items() if not name.endswith(RAW)}


def _model_of(state: dict[str, Any]) -> Weights:
    """The model's state dict out of a checkpoint's state, with LoRA merged."""
    inner = "model."
    try:
        return merge_lora(
            {name[len(inner) :]: value for name, value in state["task"].items() if name.startswith(inner)}
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError("a checkpoint of this run holds no model") from error


def _metrics_in(path: Path) -> dict[str, float] | None:
    """The metrics in a model file's header; None if the file is missing or invalid."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["metrics"])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError):
        return None


def is_better(row: dict[str, Any], best: dict[str, Any], metric: str) -> bool:
    """Whether an epoch's metric exceeds the best so far; False for an epoch without evaluation."""
    return metric in row and (metric not in best or row[metric] > best[metric])
