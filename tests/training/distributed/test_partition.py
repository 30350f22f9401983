"""Who takes which micro-batch: each exactly once, and the average over processes is the mean over the step."""

from collections import Counter
from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from dual_cross_attention.training.distributed.partition import MicroBatchPartition, seed_micro_batch

sizes = st.tuples(st.integers(1, 200), st.integers(1, 40), st.integers(1, 12))


@given(sizes)
def test_every_micro_batch_is_taken_once_in_its_step(size):
    num_batches, per_step, processes = size
    all_shares = [MicroBatchPartition(num_batches, per_step, process, processes) for process in range(processes)]
    steps = all_shares[0].steps_per_epoch
    assert steps == -(-num_batches // per_step)
    taken: Counter[int] = Counter()
    for step in range(steps):
        of_step = [shares.micro_batches_of(step) for shares in all_shares]
        assert len({len(share) for share in of_step}) == 1  # they wait for each other
        assert 1 <= len(of_step[0]) <= all_shares[0].per_rank
        for share in of_step:
            numbers = [number for number, _ in share]
            assert numbers == sorted(numbers)  # as `Batches.read` wants them
            assert all(step * per_step <= number < min((step + 1) * per_step, num_batches) for number in numbers)
            taken.update(number for number, weight in share if weight)
    assert taken == Counter(range(num_batches))


@given(sizes, st.randoms(use_true_random=False))
def test_the_average_over_processes_is_the_mean_of_the_step(size, random):
    num_batches, per_step, processes = size
    gradients = [Fraction(random.randint(-100, 100)) for _ in range(num_batches)]
    for step in range(-(-num_batches // per_step)):
        sums = []
        for process in range(processes):
            share = MicroBatchPartition(num_batches, per_step, process, processes).micro_batches_of(step)
            sums.append(sum(Fraction(weight).limit_denominator(1000) * gradients[number] for number, weight in share))
        there = gradients[step * per_step : (step + 1) * per_step]
        assert sum(sums) / processes == sum(there) / len(there)


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 4))
def test_a_step_has_the_same_micro_batches_on_any_number_of_ranks(num_batches, per_step, processes):
    one = MicroBatchPartition(num_batches, per_step)
    for step in range(one.steps_per_epoch):
        alone = {number for number, _ in one.micro_batches_of(step)}
        together = {
            n
            for p in range(processes)
            for n, _ in MicroBatchPartition(num_batches, per_step, p, processes).micro_batches_of(step)
        }
        assert alone == together


def test_samples_depend_on_the_numbers_only():
    def drawn(*numbers):
        seed_micro_batch(*numbers)
        return torch.rand(3).tolist()

    first = drawn(0, 1, 2)
    torch.rand(5)
    assert drawn(0, 1, 2) == first == drawn(0, 1, 2, 0)
    others = [drawn(*numbers) for numbers in [(1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 1, 2, 1), (0, 2, 1)]]
    assert len({*map(tuple, others), tuple(first)}) == 6
