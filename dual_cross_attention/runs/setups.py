"""The setup of each task."""

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.runs.fgvc import FGVCSetup
from dual_cross_attention.runs.reid import ReIDSetup
from dual_cross_attention.runs.setup import RunSetup

SETUPS: dict[str, type[RunSetup]] = {"fgvc": FGVCSetup, "reid": ReIDSetup}


def read_setup(config: TrainingConfig, train: bool = True) -> RunSetup:
    """The data of a run, read; arguments and errors as in `RunSetup`."""
    return SETUPS[config.task](config, train)
