"""From settings to a run: data, model, task and trainer put together."""

from dual_cross_attention.runs.checking import check_data
from dual_cross_attention.runs.evaluation import evaluate
from dual_cross_attention.runs.training import train

__all__ = ["check_data", "evaluate", "train"]
