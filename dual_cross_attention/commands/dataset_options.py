"""Options of all commands that read a dataset without a run."""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(kw_only=True)
class DatasetOptions:
    """Which dataset, and how many processes read it."""

    GROUPS: ClassVar = {
        "data": "task dataset data_root val_fraction max_bad_images",
        "hardware and speed": "num_workers",
    }

    task: Literal["fgvc", "reid"] = "fgvc"
    """fgvc: fine-grained visual categorization; reid: object re-identification."""
    dataset: str | None = None
    """Name of the dataset, as for dcal train. null: the built-in toy dataset."""
    data_root: str | None = None
    """Folder of the dataset, or the folder that contains it. null: searched in $DCAL_DATA and ./data."""
    val_fraction: float | None = None
    """For a folder of class folders without a split (dataset folder): fraction of each class to validate on, as for
    dcal train."""
    num_workers: int | None = None
    """Processes that read and decode images. null: one per core."""
