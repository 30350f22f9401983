"""The setup of each task."""

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.tasks.data_module import RunSetup
from dual_cross_attention.tasks.fgvc_data import FGVCSetup
from dual_cross_attention.tasks.reid_data import ReIDSetup

SETUPS: dict[str, type[RunSetup]] = {"fgvc": FGVCSetup, "reid": ReIDSetup}


def read_setup(config: TrainingConfig, train: bool = True, split: str | None = None) -> RunSetup:
    """The data of a run, read; arguments and errors as in `RunSetup`."""
    return SETUPS[config.task](config, train, split)
