"""The position of a training."""

from dataclasses import dataclass, field


@dataclass
class TrainState:
    """How far a training has come; all numbers are of finished epochs and steps.

    Args:
        epoch: epochs.
        step: optimizer steps since the start of the run.
        step_in_epoch: optimizer steps of the current epoch.
        best: the row of metrics.jsonl of the best epoch; empty until an epoch was evaluated.
    """

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)

    def finish_step(self) -> None:
        """Counts an optimizer step."""
        self.step, self.step_in_epoch = self.step + 1, self.step_in_epoch + 1

    def finish_epoch(self) -> None:
        """Counts an epoch."""
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
