"""Assignment of an epoch's micro-batches to optimizer steps and ranks.

Micro-batches are numbered through an epoch. A step takes the next `per_step` of them, whatever the number of ranks, so
a run computes the same on one rank and on many, and can resume with another number of ranks.
"""

from dataclasses import dataclass

import numpy as np
import torch

TAG = 1  # must not be 0: SeedSequence ignores trailing zeros


@dataclass(frozen=True)
class MicroBatchPartition:
    """Micro-batches of one rank, by optimizer step.

    Args:
        num_micro_batches: micro-batches of an epoch, over all ranks.
        per_step: micro-batches of an optimizer step, over all ranks; the last step of an epoch may have fewer.
        rank, world_size: this process, and the number of processes.
    """

    num_micro_batches: int
    per_step: int
    rank: int = 0
    world_size: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.num_micro_batches // self.per_step)

    @property
    def per_rank(self) -> int:
        """Micro-batches of one rank in a full step."""
        return -(-self.per_step // self.world_size)

    def of_all_ranks(self, step: int) -> list[int]:
        """Numbers of the micro-batches of a step (counted from 0 in the epoch), over all ranks."""
        first = step * self.per_step
        return list(range(first, min(first + self.per_step, self.num_micro_batches)))

    def micro_batches_of(self, step: int) -> list[tuple[int, float]]:
        """This rank's micro-batches of a step (counted from 0 in the epoch), as (number, weight), numbers ascending.

        Gradients are averaged over ranks, so a weight is world_size / (micro-batches of the step): the average is then
        the mean over the step's micro-batches. All ranks get the same number of micro-batches, since collectives need
        all of them; a rank that has none left repeats the last one of the step with weight 0.
        """
        numbers = self.of_all_ranks(step)
        count = len(numbers)
        weight = self.world_size / count
        places = range(self.rank, -(-count // self.world_size) * self.world_size, self.world_size)
        return [(numbers[place], weight) if place < count else (numbers[-1], 0.0) for place in places]


def seed_micro_batch(seed: int, epoch: int, number: int, chunk: int = 0) -> None:
    """Seeds torch's generators for a micro-batch (or a chunk of it): distractors, stochastic depth, dropout.

    The seed depends on these numbers alone, so neither an interruption nor the number of ranks changes what is sampled.
    `TAG` separates the stream from the augmentation of image `number`, which is seeded by (seed, epoch, number).
    """
    state = np.random.SeedSequence((seed, epoch, number, chunk, TAG)).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(state >> np.uint64(1)))
