"""Tasks: model, losses and metrics behind one interface, see `Task`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dual_cross_attention.tasks.branch_schedule import BranchSchedule
    from dual_cross_attention.tasks.fgvc import FGVCTask
    from dual_cross_attention.tasks.reid import ReIDTask, RetrievalSplit

# Imported on first access: the tasks import torchmetrics and Accelerate, for which a loaded model need not wait.
_WHERE = {"BranchSchedule": "branch_schedule", "FGVCTask": "fgvc", "ReIDTask": "reid", "RetrievalSplit": "reid"}

__all__ = ["BranchSchedule", "FGVCTask", "ReIDTask", "RetrievalSplit"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
