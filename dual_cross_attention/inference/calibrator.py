"""The interface between `dcal calibrate` and what a task calibrates."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from rich.console import Console

from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.inference.calibrations import AnyCalibration
from dual_cross_attention.inference.model_files import SavedModel
from dual_cross_attention.tasks.data_module import RunSetup

Setup = TypeVar("Setup", bound=RunSetup)


class Fitted(NamedTuple):
    """What a fit gives.

    Args:
        calibration: fitted on all images; its `held_out` is of a fit on half of them.
        counts: further entries of the result of `calibrate`.
        warnings: why the fit may be uncertain, a line each.
    """

    calibration: AnyCalibration
    counts: dict[str, Any]
    warnings: list[str]


class Calibrator(ABC, Generic[Setup]):
    """Calibrates a model of one task.

    Args:
        saved: the model.
        options: those of `options` that a user gives.

    Attributes:
        options: names of the arguments of `calibrate` that this task has; all others are refused.
    """

    options: ClassVar[tuple[str, ...]]

    @abstractmethod
    def __init__(self, saved: SavedModel, **options: Any):
        """Raises InputError for options that the model cannot have."""

    @abstractmethod
    def fit(
        self,
        setup: Setup,
        data: DataFingerprint,
        split: str | None,
        device: torch.device,
        precision: str,
        unreadable: UnreadableImages,
        console: Console,
    ) -> Fitted:
        """Fits a calibration on the test images.

        Args:
            setup: the test images, read.
            data: their fingerprint.
            split: which of them a user has chosen; None: the dataset's own choice.
            device, precision: where and how to compute.
            unreadable: collects images that cannot be read, which are left out.
            console: shows progress and notes.

        Raises:
            InputError: there are too few images, or the model's output cannot be calibrated.
        """
