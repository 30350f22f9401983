"""Where a dataset is if `--data_root` is not given."""

from typing import TypeVar

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.data.fgvc import FGVC_DATASETS
from dual_cross_attention.data.registry import find_data_root
from dual_cross_attention.data.reid import REID_DATASETS

DATASETS = {"fgvc": FGVC_DATASETS, "reid": REID_DATASETS}

Config = TypeVar("Config", bound=TrainingConfig)


def with_data_root(config: Config) -> Config:
    """The settings with `data_root` as it is found in `$DCAL_DATA` or `./data`, if it is not set.

    It stays None if the dataset is in neither: reading it raises the error, if it comes to that (see `find_data_root`).

    Raises:
        InputError: several folders are of this dataset.
    """
    if config.data_root is not None or is_synthetic(config.task, config.dataset):
        return config
    found = find_data_root(DATASETS[config.task], config.dataset)
    return config if found is None else config.replaced(data_root=f"{found}")


def is_synthetic(task: str, dataset: str) -> bool:
    """Whether the images of a dataset are generated in memory, so that no other process needs to read them."""
    return DATASETS[task][dataset].is_synthetic
