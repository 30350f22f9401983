"""The evaluation loop: `Task.eval_step` over test batches, in training and in `dcal eval`."""

from collections.abc import Callable, Iterable
from typing import Any

from dual_cross_attention.tasks.task import Batch, Task


def run_eval_steps(
    task: Task,
    batches: Iterable[Batch],
    split: Callable[[Batch], Iterable[Batch]] | None = None,
    before_batch: Callable[[int], None] | None = None,
    after_step: Callable[[Batch, Any], None] | None = None,
) -> None:
    """Runs a task's `eval_step` on this rank's batches, in evaluation mode; call `task.compute_metrics()` after it.

    Args:
        task: what it accumulated before is discarded.
        batches: test batches, see `data.dataset.collate`.
        split: splits a batch into chunks that fit into memory; None: batches are not split.
        before_batch: called with the number of every batch, from 0.
        after_step: called with each chunk and what `eval_step` returns of it.
    """
    task.eval()
    task.reset_metrics()
    for number, batch in enumerate(batches):
        if before_batch:
            before_batch(number)
        for chunk in split(batch) if split else (batch,):
            output = task.eval_step(chunk)
            if after_step:
                after_step(chunk, output)
