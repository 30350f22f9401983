"""Settings of how a run shows itself: experiment trackers, and the sheet of training images. Part of `TrainingConfig`.
None of them changes what is computed."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dual_cross_attention.configs.versions import setting
from dual_cross_attention.errors import InputError

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "none"]


@dataclass(kw_only=True)
class TrackingConfig:
    """Settings of the trackers and of the images that a run shows."""

    RANGES: ClassVar[dict[str, tuple[float, float | None]]] = {"sample_images": (0, 100)}

    log_with: tuple[Tracker, ...] = setting(("tensorboard",), before={1: ("tensorboard",)})
    """Experiment trackers that get the settings, each epoch's metrics and the sample images: one or several of
    tensorboard (files in the run folder), wandb (Weights & Biases), mlflow and trackio, each by the Python package of
    this name; or none. A run that resumes continues in the same run of the tracker."""
    tracker_project: str | None = setting(None, before={1: None})
    """Project of wandb and trackio, and experiment of mlflow. null: $WANDB_PROJECT, $MLFLOW_EXPERIMENT_NAME, else
    dcal."""
    sample_images: int = setting(16, before={1: 16})
    """Number of training images of the first batch that are written into train_images.jpg when a training begins, with
    their labels, as the model gets them. 0: none."""

    def _check_tracking(self) -> None:
        """Raises InputError if `log_with` or `tracker_project` cannot work; a name alone becomes a tuple."""
        names = (self.log_with,) if isinstance(self.log_with, str) else tuple(self.log_with)
        if not names or len(set(names)) < len(names) or ("none" in names and len(names) > 1):
            raise InputError(
                f"log_with: expected different trackers, or none alone; got {' '.join(names) or 'nothing'}"
            )
        self.log_with = names
        if self.tracker_project is not None and not self.tracker_project.strip():
            raise InputError("tracker_project: expected a name, got only white space; null takes the default")

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers; empty with `none`."""
        return tuple(name for name in self.log_with if name != "none")
