"""Tasks: model, losses and metrics behind one interface, see `Task`."""

from dual_cross_attention.tasks.branch_schedule import BranchSchedule
from dual_cross_attention.tasks.fgvc import FGVCTask
from dual_cross_attention.tasks.reid import ReIDTask, RetrievalSplit

__all__ = ["BranchSchedule", "FGVCTask", "ReIDTask", "RetrievalSplit"]
