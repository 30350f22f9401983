"""Evaluation within a training: batches by rank, requests between them, smaller chunks after an out-of-memory error."""

from collections.abc import Callable, Iterator

import torch
from rich.console import Console

from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.inference.evaluation_loop import run_eval_steps
from dual_cross_attention.progress import track
from dual_cross_attention.tasks.task import Batch
from dual_cross_attention.training.distributed.partition import MicroBatchPartition
from dual_cross_attention.training.distributed.requests import RankRequests
from dual_cross_attention.training.oom import MicroBatchChunks, Shortage, catch_out_of_memory


class EvaluationLoop:
    """Evaluates a task on the test split; every image counts on one rank.

    Args:
        batches: of the test split.
        chunks: how batches are split.
        requests: of the ranks that share the task, polled between batches.
        unreadable: collects images that cannot be read.
        interval: batches between two polls.
        split_further: called after an out-of-memory error, with `chunks` and the error; halves them, or raises.
        console: shows a progress bar.
    """

    def __init__(
        self,
        batches: Batches,
        chunks: MicroBatchChunks,
        requests: RankRequests,
        unreadable: UnreadableImages,
        interval: int,
        split_further: Callable[[MicroBatchChunks, Shortage], None],
        console: Console,
    ):
        strategy = requests.strategy
        self.strategy, self.task, self.batches, self.chunks = strategy, strategy.task, batches, chunks
        self.requests, self.unreadable, self.interval = requests, unreadable, interval
        self.split_further, self.console = split_further, console
        partition = MicroBatchPartition(len(batches), len(batches), strategy.rank, strategy.world_size)
        self._own = partition.micro_batches_of(0)

    def run(self, title: str) -> dict[str, float]:
        """Evaluates once; returns what `Task.compute_metrics` returns.

        Args:
            title: of the progress bar.

        Raises:
            InterruptedRun: a signal came.
            InputError: out of memory with one image at a time, or where other ranks cannot be told; or as of
                `Task.compute_metrics`.
            TrainingDivergedError: as of `Task.compute_metrics`.
        """
        while True:
            _, shortage = catch_out_of_memory(lambda: self._run_steps(title))
            if shortage is None:
                metrics, shortage = catch_out_of_memory(self._compute_metrics)
                if shortage is None:
                    return metrics
            elif not shortage.all_ranks_know and not self.strategy.sharded:
                self.requests.announce_out_of_memory()
                shortage = shortage._replace(all_ranks_know=True)
            self.task.reset_metrics()
            self.split_further(self.chunks, shortage)

    def _run_steps(self, title: str) -> None:
        with self.strategy.accelerator.autocast(), self.requests.interruptible():
            batches = track(self._read(), title, len(self._own), self.console)
            run_eval_steps(self.task, batches, self._split, self._poll)
            self.requests.poll()

    def _compute_metrics(self) -> dict[str, float]:
        with self.strategy.accelerator.autocast(), self.requests.interruptible():
            metrics = self.task.compute_metrics()
        self.task.reset_metrics()
        return metrics

    def _read(self) -> Iterator[Batch]:
        batches = self.unreadable.watch(self.batches.read(0, [number for number, _ in self._own]))
        for batch, (_, weight) in zip(batches, self._own, strict=True):
            yield batch if weight else _padding(batch)

    def _split(self, batch: Batch) -> Iterator[Batch]:
        for chunk, fraction in self.chunks.split(batch):
            yield chunk if fraction else _padding(chunk)

    def _poll(self, number: int) -> None:
        if number % self.interval == 0:
            self.requests.poll()


def _padding(batch: Batch) -> Batch:
    """The same batch without a valid image, so that all ranks run as many passes, which under FSDP are collectives."""
    return batch | {"valid": torch.zeros_like(batch["valid"])}
