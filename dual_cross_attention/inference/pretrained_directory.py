"""A directory that holds a model for others: model.safetensors, config.json and a model card, README.md."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from safetensors import SafetensorError
from torch import Tensor

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibrations import AnyCalibration
from dual_cross_attention.inference.model_card import model_card
from dual_cross_attention.inference.model_files import PRETRAINED_NAME, save_model
from dual_cross_attention.runs.run_folder import RunFolder, versions

LIBRARY = "dual-cross-attention"


def write_directory(
    directory: Path,
    state: Mapping[str, Tensor],
    config: TrainingConfig,
    labels: list[str],
    metrics: dict[str, float],
    data: DataFingerprint | None,
    preprocessing: Preprocessing,
    calibration: AnyCalibration | None,
    chosen_by: str | None,
) -> None:
    """Writes the three files; those that are there are replaced. Arguments as of `save_model`.

    Paths of this machine in the settings (data_root, output_dir, …) are left out; of a weights file the name stays.

    Raises:
        InputError: they cannot be written, or the directory is a run's folder, whose own model would hide them.
    """
    folder = RunFolder(directory)
    if folder.config.exists() or folder.best.exists() or folder.last.exists():
        raise InputError(f"save_pretrained: '{directory}' is a run's folder: give another directory")
    config = without_paths(config)
    described = {
        "format_version": FORMAT_VERSION,
        "library_name": LIBRARY,
        "task": config.task,
        "num_labels": len(labels),
        "labels": labels,
        "preprocessing": json.loads(preprocessing.to_json()),
        "calibration": calibration and json.loads(calibration.to_json()),
        "settings": asdict(config),
        "metrics": metrics,
        "chosen_by": chosen_by,
        "data": data and json.loads(data.to_json()),
        "versions": versions(),
    }
    card = model_card(config, labels, metrics, data, preprocessing, chosen_by, calibration)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        model = directory / PRETRAINED_NAME
        save_model(model, dict(state), config, labels, metrics, data, preprocessing, calibration, chosen_by)
        for name, text in (("config.json", json.dumps(described, indent=2) + "\n"), ("README.md", card)):
            with atomic_write(directory / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"save_pretrained: cannot write to '{directory}': {reason}") from error


def without_paths(config: TrainingConfig) -> TrainingConfig:
    """Settings without paths of the machine that they were trained on."""
    names = {"weights": _last_part(config.weights)}
    for name in ("distractor_root", "views"):
        if path := getattr(config, name, None):
            names[name] = _last_part(path)
    return replace(config, data_root=None, output_dir=None, resume="auto", **names)


def _last_part(path: str) -> str:
    return PureWindowsPath(PurePosixPath(path).name).name or path
