"""A run's folder: what lies where, and how it is written so that nothing is half there."""

import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.flags import read_yaml
from dual_cross_attention.errors import InputError
from dual_cross_attention.version import __version__

LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "numpy")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {"dual-cross-attention": __version__, "python": platform.python_version()} | {
        name: version(name) for name in LIBRARIES
    }


class RunFolder:
    """OUTPUT_DIR with config.yaml, metrics.jsonl, best and last model, and checkpoints/."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self.checkpoints = self.path / "checkpoints"

    def write_config(self, config: TrainingConfig) -> None:
        """The settings as YAML, usable as --config; the versions stand above them."""
        head = "".join(f"# {name} {number}\n" for name, number in versions().items())
        self._write(self.config, head + yaml.safe_dump(asdict(config), sort_keys=False))

    def read_config(self) -> dict[str, Any]:
        """The settings of the run, as `write_config` left them.

        Raises:
            InputError: somebody wrote something else there.
        """
        return read_yaml(self.config)

    def append_metrics(self, row: dict[str, float]) -> None:
        """One epoch's row."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """All rows so far; a last line that a crash cut short is left out."""
        rows = []
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise InputError(f"'{self.metrics}', line {number}: expected JSON, got {line!r:.60}") from error
        return rows

    def drop_metrics_after(self, epoch: int) -> None:
        """Forget rows that a resumed run will write again."""
        rows = [row for row in self.read_metrics() if row["epoch"] <= epoch]
        self._write(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def _write(self, path: Path, text: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text)
        os.replace(temporary, path)
