"""The run that a trainer works for: settings, classes, data, folder and console."""

from dataclasses import dataclass

from rich.console import Console

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.runs.run_folder import RunFolder


@dataclass(frozen=True)
class RunContext:
    """What does not change during a run.

    Args:
        config: settings, of any task.
        classes: class names, saved with the model.
        folder: of checkpoints, metrics and models.
        console: shows progress, warnings and results of epochs.
        data: fingerprint of the training data, for the headers of model files.
    """

    config: TrainingConfig
    classes: list[str]
    folder: RunFolder
    console: Console
    data: DataFingerprint | None = None

    def warn(self, message: str) -> None:
        """Shows a warning."""
        self.console.print(f"warning: {message}", style="yellow")
