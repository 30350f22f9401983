"""The files of a run folder, each written atomically."""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import yaml

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.parse import restore_config
from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version
from dual_cross_attention.configs.yaml_files import read_yaml
from dual_cross_attention.data.fingerprint import DataFingerprint
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
        self.source = self.path / "resumed_from.json"
        self.data = self.path / "data.json"
        self.metrics = self.path / "metrics.jsonl"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        # The weights themselves, of runs in which best and last are an average of the weights.
        self.best_raw = self.path / "best_raw.safetensors"
        self.last_raw = self.path / "last_raw.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.diverged = self.path / "diverged"
        self.memory = self.path / "memory.json"
        self.eval_memory = self.path / "eval_memory.json"
        self.trackers = self.path / "trackers.json"
        self.sample_images = self.path / "train_images.jpg"

    def remove_leftovers(self) -> None:
        """Remove temporary files of a killed run; the folder must be locked."""
        written = (
            self.config,
            self.source,
            self.data,
            self.metrics,
            self.best,
            self.last,
            self.best_raw,
            self.last_raw,
            self.memory,
            self.eval_memory,
            self.trackers,
            self.sample_images,
        )
        for path in written:
            path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)

    def write_config(self, config: TrainingConfig) -> None:
        """Write the settings as YAML, usable as --config, below the versions of the libraries."""
        head = "".join(f"# {name} {number}\n" for name, number in versions().items())
        self._write(self.config, head + yaml.safe_dump(asdict(config), sort_keys=False))

    def read_config(self) -> TrainingConfig:
        """The settings of the run, as `write_config` left them; see `restore_config`.

        Raises:
            InputError: there is something else.
        """
        return restore_config(read_yaml(self.config), f"'{self.config}'")

    def read_versions(self) -> dict[str, str]:
        """Versions of the libraries by name, from the comments above the settings; empty where there are none."""
        lines = [line.split() for line in self.config.read_text(errors="replace").splitlines() if line.startswith("# ")]
        return {line[1]: line[2] for line in lines if len(line) == 3}

    def write_data(self, fingerprint: DataFingerprint) -> None:
        """Record which data the run is trained on; to be written before the settings."""
        self._write(self.data, fingerprint.to_json() + "\n")

    def read_data(self) -> DataFingerprint | None:
        """The fingerprint in data.json; None if there is no such file, as in runs of format 1.

        Raises:
            InputError: the file holds something else, or cannot be read.
        """
        try:
            return DataFingerprint.from_json(self.data.read_text(), f"'{self.data}'")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read '{self.data}', which data the run is of: {error}") from error

    def write_source(self, named: Path, checkpoint: Path) -> None:
        """Record what a run resumes from, other than its own newest checkpoint; to be written before the settings.

        Args:
            named: the path that --resume names, such as another run folder, which may get later checkpoints.
            checkpoint: the checkpoint that it meant.
        """
        content = {"format_version": FORMAT_VERSION, "named": str(named), "checkpoint": str(checkpoint)}
        self._write(self.source, json.dumps(content, indent=1) + "\n")

    def read_source(self) -> tuple[Path, Path] | None:
        """The paths given to `write_source`; None of a run that did not begin from a checkpoint.

        Raises:
            InputError: the file holds something else, or cannot be read.
        """
        if not self.source.exists():
            return None
        try:
            source = json.loads(self.source.read_text())
            return Path(source["named"]), Path(source["checkpoint"])
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise InputError(
                f"cannot read '{self.source}', where the run began ({type(error).__name__}: {error}): put it back, or "
                "take another --output_dir"
            ) from error

    def write_trackers(self, identities: dict[str, dict[str, str]]) -> None:
        """Record which runs of experiment trackers belong to this run: {tracker: {"project": …, "id": …}}."""
        self._write(self.trackers, json.dumps({"format_version": FORMAT_VERSION, "trackers": identities}) + "\n")

    def read_trackers(self) -> dict[str, dict[str, str]]:
        """What `write_trackers` got; empty if it was never called.

        Raises:
            InputError: the file holds something else, or cannot be read.
        """
        try:
            content = json.loads(self.trackers.read_text())
            check_version(content["format_version"], f"'{self.trackers}'")
            return {
                str(name): {"project": str(of["project"]), "id": str(of["id"])}
                for name, of in content["trackers"].items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"cannot read '{self.trackers}', which says in which tracker runs to continue ({type(error).__name__}: "
                f"{error}): remove it to begin new ones"
            ) from error

    def read_metrics(self) -> list[dict[str, float]]:
        """All rows so far, without a last line that a crash cut short."""
        rows = []
        lines = self.metrics.read_text(errors="replace").splitlines() if self.metrics.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if not (isinstance(row, dict) and isinstance(row.get("epoch"), int)):
                    raise ValueError("no epoch")
                check_version(row.pop("format_version", None), f"'{self.metrics}', line {number}")
                rows.append(row)
            except (ValueError, RecursionError) as error:
                if number < len(lines):
                    raise InputError(f"'{self.metrics}', line {number}: expected JSON, got {line!r:.60}") from error
        return rows

    def write_metrics(self, row: dict[str, float]) -> None:
        """Write the row of an epoch, in place of it and all later ones, which a resumed run writes again."""
        rows = [other for other in self.read_metrics() if other["epoch"] < row["epoch"]]
        self._write_rows([*rows, row])

    def drop_metrics_after(self, epoch: int) -> None:
        """Remove the rows of later epochs."""
        rows = self.read_metrics()
        kept = [row for row in rows if row["epoch"] <= epoch]
        if len(kept) < len(rows):
            self._write_rows(kept)

    def _write_rows(self, rows: list[dict[str, float]]) -> None:
        self._write(self.metrics, "".join(json.dumps(row | {"format_version": FORMAT_VERSION}) + "\n" for row in rows))

    def _write(self, path: Path, text: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text)
