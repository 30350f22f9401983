"""Options of all commands that read a dataset without a run."""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(kw_only=True)
class DatasetOptions:
    """Which dataset, and how many processes read it."""

    GROUPS: ClassVar = {
        "data": "task dataset data_root image_column label_column val_fraction max_bad_images",
        "hardware and speed": "num_workers",
    }

    task: Literal["fgvc", "reid"] = "fgvc"
    """fgvc: fine-grained visual categorization; reid: object re-identification."""
    dataset: str | None = None
    """Name of the dataset, as for dcal train. null: the built-in toy dataset."""
    data_root: str | None = None
    """Folder of the dataset, or the folder that contains it. null: searched in $DCAL_DATA and ./data."""
    image_column: str | None = None
    """Column of the images in a table (datasets csv and hf). null: found by its name."""
    label_column: str | None = None
    """Column of the classes in a table. null: found by its name."""
    val_fraction: float | None = None
    """For images without a split (class folders of dataset folder, a csv without the column split): fraction of each
    class to validate on, as for dcal train."""
    num_workers: int | None = None
    """Processes that read and decode images. null: one per core."""
