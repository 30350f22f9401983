"""From settings to a run: data, model, task and trainer put together."""

from dual_cross_attention.inference.evaluation import evaluate
from dual_cross_attention.tasks.data_check import check_data
from dual_cross_attention.training.run import train

__all__ = ["check_data", "evaluate", "train"]
