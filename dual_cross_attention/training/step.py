"""One step of the optimizer: micro-batches forward and backward, gradients clipped and judged, weights moved."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from accelerate.utils import send_to_device
from torch import Tensor

from dual_cross_attention.errors import InputError
from dual_cross_attention.training.batchnorm import RunningStatistics
from dual_cross_attention.training.distributed.partition import seed_batch
from dual_cross_attention.training.distributed.strategy import Parallel
from dual_cross_attention.training.divergence import Freeze
from dual_cross_attention.training.oom import ADVICE, OutOfMemory, Pieces, first_sentence, is_out_of_memory
from dual_cross_attention.training.step_log import LOSS_SCALE, SHARED_LOSS, StepLog

CAREFUL = 3
"""Steps, from the first and from one that memory was too little for, after which it is known to suffice."""


class OptimizerStep:
    """Takes steps of the optimizer; one that is given up leaves nothing.

    With DDP, processes that train together share their gradients in the backward pass. One whose memory runs out could
    not tell the others, who wait for it there. So in a few careful steps they share them afterwards. Those hold the
    gradients twice (DDP's own buffers are there already), so what suffices for them suffices for all.

    Args:
        parallel: the task, its optimizer, and the other processes.
        pieces: how many a micro-batch is cut into.
        step_log: is told of a gradient that is not finite where the device cannot hold the weights by itself.
        clip_grad: largest norm of the gradients; None does not clip.
        seed: of the run.
    """

    def __init__(self, parallel: Parallel, pieces: Pieces, step_log: StepLog, clip_grad: float | None, seed: int):
        self.parallel, self.pieces, self.step_log, self.seed = parallel, pieces, step_log, seed
        self.limit = math.inf if clip_grad is None else clip_grad
        self.accelerator, self.optimizer = parallel.accelerator, parallel.optimizer
        self.device = self.accelerator.device
        self.careful = 0  # steps that still are
        self.be_careful()
        # Where the device cannot hold the weights by itself, somebody looks before every step; see `Freeze`.
        holds = self.device.type in ("cuda", "cpu") and not parallel.sharded
        self.freeze = Freeze(parallel.plain_optimizer, self.device) if holds else None
        self.statistics = RunningStatistics(parallel.task)

    def be_careful(self) -> None:
        """The next steps may take more memory than those before."""
        if self.parallel.processes > 1 and not self.parallel.sharded:
            self.careful = CAREFUL

    def take(
        self,
        epoch: int,
        share: list[tuple[int, float]],
        batches: Iterator[dict[str, Any]],
        advance: Callable[[int], None],
    ) -> tuple[dict[str, Tensor], float]:
        """Returns the step's scalars, on the device, and the share of the step that they are of.

        Args:
            epoch: counted from 1.
            share: number and weight of this process's micro-batches; see `Shares.of`.
            batches: those micro-batches.
            advance: is told the images of each.

        Raises:
            OutOfMemory: memory runs out in some process, in a careful step.
            RuntimeError: it runs out, and others may wait for this process; with one, smaller pieces help as well.
            InputError: it runs out where they would not.
            TrainingDivergedError: a gradient is not finite, where the device cannot hold the weights by itself.
        """
        try:
            self.statistics.start()
            run = self._run_carefully if self.careful else self._run
            return self._move_weights(run(epoch, share, batches, advance), sum(weight for _, weight in share))
        except BaseException:
            self.optimizer.zero_grad()
            self.statistics.undo()
            raise

    def _move_weights(self, sums: dict[str, Tensor], total: float) -> tuple[dict[str, Tensor], float]:
        """What `take` returns, of the weighted sums of the scalars and the sum of their weights."""
        scaler = self.accelerator.scaler
        norm = self.parallel.clip(self.limit)
        scalars = {name: value / total for name, value in sums.items()} if total else {}
        if scaler is None:
            judged = scalars["grad_norm"] = norm
        else:  # a gradient of fp16 overflows now and then, and its scaler skips that step; a loss does not
            judged = self.parallel.average(scalars.get("loss", norm.new_zeros(())).clone())
            if self.parallel.processes > 1:  # with a loss that is finite, too, a process must end where the others do
                scalars[SHARED_LOSS] = judged
        if self.freeze:
            self.freeze.look_at(judged)
        elif not judged.isfinite():
            self.step_log.add(scalars)
            self.step_log.flush()
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if is_out_of_memory(error):  # it may have taken half of a step, and smaller batches leave it no more room
                raise InputError(
                    f"out of memory for the optimizer's state ({first_sentence(error)}): {ADVICE}"
                ) from error
            raise
        if scaler is not None:
            scalars[LOSS_SCALE] = scaler.scale(norm.new_ones(()))  # without waiting for the device
        self.optimizer.zero_grad()
        self.statistics.finish(self.parallel.average, self.freeze.found > 0 if self.freeze else None)
        return scalars, total / self.parallel.processes

    def _run_carefully(self, *arguments: Any) -> dict[str, Tensor]:
        reason = None
        try:
            sums = self._run(*arguments)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = first_sentence(error)
        reasons = [said for said in self.parallel.gather(reason) if said]
        if reasons:
            self.careful = CAREFUL
            raise OutOfMemory(reasons[0])
        self.parallel.average_gradients()
        self.careful -= 1
        return sums

    def _run(
        self,
        epoch: int,
        share: list[tuple[int, float]],
        batches: Iterator[dict[str, Any]],
        advance: Callable[[int], None],
    ) -> dict[str, Tensor]:
        """Forward and backward; returns the weighted sums of the scalars."""
        sums: dict[str, Tensor] = {}
        for place, (number, weight) in enumerate(share):
            batch = send_to_device(next(batches), self.device, non_blocking=True)
            pieces = list(self.pieces.cut(batch))
            for piece, (part, part_weight) in enumerate(pieces):
                is_last = place == len(share) - 1 and piece == len(pieces) - 1
                seed_batch(self.seed, epoch, number, piece)
                with nullcontext() if is_last and not self.careful else self.parallel.accumulating():
                    with self.accelerator.autocast():
                        scalars = self.parallel.wrapped(part)
                    loss = scalars["loss"] * (weight * part_weight)
                    scaled = self.accelerator.scaler is not None
                    self.accelerator.backward(self.freeze.spoil(loss) if scaled and self.freeze else loss)
                self.statistics.add(weight * part_weight)
                for name, value in scalars.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() * (weight * part_weight)
            advance(len(batch["labels"]) if weight else 0)
        return sums
