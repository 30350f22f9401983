"""A finished run as a row of a table: its settings, scores of the last epoch, time, memory, data and versions."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.runs.run_summary import read_run

SETTINGS = [
    "task",
    "dataset",
    "backbone",
    "ablation",
    "glca_init",
    "pwca_start",
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
    "data",
]
NOT_IN_OTHER = {
    *SETTINGS,
    "data_root",
    "weights",
    "output_dir",
    "resume",
    "num_workers",
    "checkpoint_minutes",
    "eval_every",
    "mean",
    "std",
    "format_version",
}


def run_row(path: Path) -> dict[str, Any] | None:
    """The row of a run, by `COLUMNS`; None if it has not ended.

    "other" has the further settings that are not the defaults, "train_seconds" is that of `RunSummary`, "data" the
    first digits of a hash of the data's fingerprint.
    """
    if not (RunFolder(path).config.is_file() and RunFolder(path).read_metrics()):
        return None
    run = read_run(path)
    if not run.has_ended:
        return None
    config, data, last = run.config, run.data, run.rows[-1]
    defaults = type(config)()
    other = {
        name: value
        for name, value in vars(config).items()
        if name not in NOT_IN_OTHER and value != getattr(defaults, name)
    }
    splits = {name: split.images for name, split in data.splits.items()} if data else {}
    seconds = run.train_seconds
    return {
        "run": path.name,
        **{name: getattr(config, name) for name in SETTINGS},
        "img_size": "x".join(map(str, config.img_size)),
        "other": json.dumps(other, sort_keys=True) if other else "",
        "train_images": splits.get("train"),
        "test_images": sum(count for name, count in splits.items() if name not in ("train", "distractors")) or None,
        **{name: round(last[name], 3) for name in SCORES if name in last},
        "train_seconds": None if seconds is None else round(seconds),
        "peak_memory_mb": round(last["peak_memory_mb"]),
        "torch": run.versions.get("torch", ""),
        "data": data_digest(data) if data else None,
    }


def data_digest(data: DataFingerprint) -> str:
    """Of all but distractors and views, which are part of the method and not of the data."""
    splits = {name: split for name, split in data.splits.items() if name != "distractors"}
    return hashlib.sha256(replace(data, splits=splits, views=None).to_json().encode()).hexdigest()[:12]
