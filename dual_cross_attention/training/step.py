"""One optimizer step: forward and backward passes of its micro-batches, clipping, the guard, and the update."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from accelerate.utils import send_to_device
from torch import Tensor

from dual_cross_attention.errors import InputError
from dual_cross_attention.training.batchnorm import BatchNormStatistics
from dual_cross_attention.training.distributed.partition import seed_micro_batch
from dual_cross_attention.training.distributed.strategy import DistributedStrategy
from dual_cross_attention.training.divergence import NonFiniteGuard
from dual_cross_attention.training.oom import ADVICE, MicroBatchChunks, OutOfMemory, first_sentence, is_out_of_memory
from dual_cross_attention.training.step_log import LOSS_SCALE, SHARED_LOSS, StepLog

DEFERRED_STEPS = 3
"""Steps with deferred gradient synchronization at the start and after an out-of-memory error; then memory suffices."""


class OptimizerStep:
    """Runs optimizer steps; a step that fails changes nothing.

    DDP reduces gradients in the backward pass. A rank that runs out of memory there could not tell the others, which
    would wait for it. So the first few steps defer the reduction until all ranks are known to have finished their
    passes. Such a step holds the gradients twice (DDP's buckets exist already), so memory that suffices for it suffices
    for all.

    Args:
        strategy: task, optimizer and collectives.
        chunks: how micro-batches are split.
        step_log: receives a non-finite gradient where the device cannot skip the update itself.
        clip_grad: largest norm of the gradients; None does not clip.
        seed: of the run.
    """

    def __init__(
        self,
        strategy: DistributedStrategy,
        chunks: MicroBatchChunks,
        step_log: StepLog,
        clip_grad: float | None,
        seed: int,
    ):
        self.strategy, self.chunks, self.step_log, self.seed = strategy, chunks, step_log, seed
        self.max_norm = math.inf if clip_grad is None else clip_grad
        self.accelerator, self.optimizer = strategy.accelerator, strategy.optimizer
        self.device = self.accelerator.device
        self.deferred_steps = 0  # that are left
        self.defer_sync()
        # Where the device cannot skip an update itself, the host reads the norm before every one; see `NonFiniteGuard`.
        has_guard = self.device.type in ("cuda", "cpu") and not strategy.sharded
        self.guard = NonFiniteGuard(strategy.plain_optimizer, self.device) if has_guard else None
        self.batchnorm = BatchNormStatistics(strategy.task)

    def defer_sync(self) -> None:
        """Defers gradient synchronization in the next steps, which may take more memory than those before."""
        if self.strategy.world_size > 1 and not self.strategy.sharded:
            self.deferred_steps = DEFERRED_STEPS

    def run(
        self,
        epoch: int,
        micro_batches: list[tuple[int, float]],
        batches: Iterator[dict[str, Any]],
        advance: Callable[[int], None],
    ) -> tuple[dict[str, Tensor], float]:
        """Runs one step; returns its scalars, on the device, and the fraction of the step that they are means of.

        Args:
            epoch: counted from 1.
            micro_batches: number and weight of this rank's micro-batches; see `MicroBatchPartition.micro_batches_of`.
            batches: iterator over these micro-batches.
            advance: called with the number of images of each.

        Raises:
            OutOfMemory: some rank is out of memory, in a step with deferred synchronization.
            RuntimeError: this rank is out of memory, and others may wait for it; smaller chunks help a single rank.
            InputError: out of memory where smaller chunks would not help.
            TrainingDivergedError: a gradient is not finite, where the device cannot skip the update itself.
        """
        try:
            self.batchnorm.begin_step()
            passes = self._passes_with_deferred_sync if self.deferred_steps else self._passes
            sums = passes(epoch, micro_batches, batches, advance)
            return self._update(sums, sum(weight for _, weight in micro_batches))
        except BaseException:
            self.optimizer.zero_grad()
            self.batchnorm.restore()
            raise

    def _update(self, sums: dict[str, Tensor], total: float) -> tuple[dict[str, Tensor], float]:
        """What `run` returns, from the weighted sums of the scalars and the sum of the weights."""
        scaler = self.accelerator.scaler
        norm = self.strategy.clip_grad_norm(self.max_norm)
        scalars = {name: value / total for name, value in sums.items()} if total else {}
        if scaler is None:
            checked = scalars["grad_norm"] = norm
        else:  # fp16 gradients overflow now and then, and the scaler skips that step; the loss does not
            checked = self.strategy.all_reduce_mean(scalars.get("loss", norm.new_zeros(())).clone())
            if self.strategy.world_size > 1:  # a rank whose own loss is finite must stop at the same step, too
                scalars[SHARED_LOSS] = checked
        if self.guard:
            self.guard.update(checked)
        elif not checked.isfinite():
            self.step_log.add(scalars)
            self.step_log.flush()
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if is_out_of_memory(error):  # part of the update may be done, and smaller chunks leave it no more memory
                raise InputError(
                    f"out of memory for the optimizer's state ({first_sentence(error)}): {ADVICE}"
                ) from error
            raise
        if scaler is not None:
            scalars[LOSS_SCALE] = scaler.scale(norm.new_ones(()))  # get_scale() would synchronize with the device
        self.optimizer.zero_grad()
        self.batchnorm.end_step(self.strategy.all_reduce_mean, self.guard.found_inf > 0 if self.guard else None)
        return scalars, total / self.strategy.world_size

    def _passes_with_deferred_sync(self, *arguments: Any) -> dict[str, Tensor]:
        reason = None
        try:
            sums = self._passes(*arguments)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = first_sentence(error)
        reasons = [each for each in self.strategy.all_gather(reason) if each]
        if reasons:
            self.deferred_steps = DEFERRED_STEPS
            raise OutOfMemory(reasons[0])
        self.strategy.all_reduce_gradients()
        self.deferred_steps -= 1
        return sums

    def _passes(
        self,
        epoch: int,
        micro_batches: list[tuple[int, float]],
        batches: Iterator[dict[str, Any]],
        advance: Callable[[int], None],
    ) -> dict[str, Tensor]:
        """Forward and backward passes; returns the weighted sums of the scalars."""
        sums: dict[str, Tensor] = {}
        for place, (number, weight) in enumerate(micro_batches):
            batch = send_to_device(next(batches), self.device, non_blocking=True)
            chunks = list(self.chunks.split(batch))
            for chunk, (part, fraction) in enumerate(chunks):
                is_last = place == len(micro_batches) - 1 and chunk == len(chunks) - 1
                seed_micro_batch(self.seed, epoch, number, chunk)
                with nullcontext() if is_last and not self.deferred_steps else self.strategy.no_sync():
                    with self.accelerator.autocast():
                        scalars = self.strategy.wrapped(part)
                    loss = scalars["loss"] * (weight * fraction)
                    is_scaled = self.accelerator.scaler is not None
                    self.accelerator.backward(self.guard.mask_loss(loss) if is_scaled and self.guard else loss)
                self.batchnorm.accumulate(weight * fraction)
                for name, value in scalars.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() * (weight * fraction)
            advance(len(batch["labels"]) if weight else 0)
        return sums
