"""Which micro-batches of an epoch make which step of the optimizer, and which process takes them.

Micro-batches are numbered through an epoch. A step takes the next `per_step` of them, whatever the number of processes:
so a run computes the same on one process and on many, and can continue with another number of them.
"""

from dataclasses import dataclass

import numpy as np
import torch

TAG = 1  # not 0, which would be the same as nothing


@dataclass(frozen=True)
class Shares:
    """A process's part of every step.

    Args:
        num_batches: micro-batches of an epoch.
        per_step: micro-batches of a step, of all processes together; the last step of an epoch may have fewer.
        process, processes: this one, and how many there are.
    """

    num_batches: int
    per_step: int
    process: int = 0
    processes: int = 1

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.num_batches // self.per_step)

    @property
    def rounds(self) -> int:
        """Micro-batches that a process takes in a full step."""
        return -(-self.per_step // self.processes)

    def numbers(self, step: int) -> list[int]:
        """The micro-batches of a step of the epoch, of all processes."""
        first = step * self.per_step
        return list(range(first, min(first + self.per_step, self.num_batches)))

    def of(self, step: int) -> list[tuple[int, float]]:
        """This process's micro-batches of a step of the epoch, as (number, weight), numbers ascending.

        The gradients of all processes are averaged, so a weight is processes / (micro-batches of the step): the average
        is the mean over the step's micro-batches. All processes take equally many, since they wait for each other; one
        that has none left takes the last of the step once more, with weight 0.
        """
        numbers = self.numbers(step)
        there = len(numbers)
        weight = self.processes / there
        places = range(self.process, -(-there // self.processes) * self.processes, self.processes)
        return [(numbers[place], weight) if place < there else (numbers[-1], 0.0) for place in places]


def seed_batch(seed: int, epoch: int, number: int, piece: int = 0) -> None:
    """Distractors and stochastic depth of a micro-batch (or a piece of it) are drawn from these numbers alone.

    So they do not depend on what was drawn before: on an interruption, or on which process it is. `TAG` keeps them
    apart from the augmentation of image `number`, which is drawn from (seed, epoch, number).
    """
    drawn = np.random.SeedSequence((seed, epoch, number, piece, TAG)).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(drawn >> np.uint64(1)))
