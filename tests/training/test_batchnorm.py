"""Running statistics of batch normalization move once a step, by the mean over its micro-batches."""

import copy
import math

import pytest
import torch
from torch import nn

from dual_cross_attention.training.batchnorm import BatchNormStatistics

MOMENTUM = 0.1  # of BatchNorm1d


@pytest.fixture
def norm():
    """A batch normalization that has seen something, within a module."""
    module = nn.Sequential(nn.BatchNorm1d(4))
    module(3 * torch.randn(16, 4, generator=torch.Generator().manual_seed(0)) + 1)
    return module


def buffers_of(module):
    return {name: value.clone() for name, value in module.named_buffers()}


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 4, generator=generator) * scale for scale in range(1, count + 1)]


def alone(tensor):
    return tensor


def step(module, statistics, seen, weights, average=alone, is_void=None):
    statistics.begin_step()
    for batch, weight in zip(seen, weights, strict=True):
        module(batch)
        statistics.accumulate(weight)
    statistics.end_step(average, is_void)


def test_a_step_of_one_micro_batch_is_what_the_module_does_by_itself(norm):
    (batch,) = batches(1)
    ours = nn.Sequential(nn.BatchNorm1d(4))
    ours.load_state_dict(norm.state_dict())
    norm(batch)
    step(ours, BatchNormStatistics(ours), [batch], [1.0])
    for name, value in buffers_of(norm).items():
        assert torch.equal(buffers_of(ours)[name], value), name


def test_several_micro_batches_move_them_once_by_their_mean(norm):
    before, seen, weights = buffers_of(norm), batches(3), [0.5, 0.25, 0.25]
    step(norm, BatchNormStatistics(norm), seen, weights)
    after = buffers_of(norm)
    for name, of_batch in (("0.running_mean", lambda b: b.mean(0)), ("0.running_var", lambda b: b.var(0))):
        mean = sum(weight * of_batch(batch).double() for weight, batch in zip(weights, seen, strict=True))
        torch.testing.assert_close(
            after[name].double(), (1 - MOMENTUM) * before[name].double() + MOMENTUM * mean, atol=1e-6, rtol=1e-6
        )
    assert after["0.num_batches_tracked"] == before["0.num_batches_tracked"] + 1


def test_two_processes_move_them_as_one_does(norm):
    """Each takes two of three micro-batches; one of them comes twice, the second time without weight."""
    seen = batches(3)
    shares = [([seen[0], seen[2]], [2 / 3, 2 / 3]), ([seen[1], seen[2]], [2 / 3, 0.0])]

    def processes(average):
        """Both, from the same start."""
        ours = [copy.deepcopy(norm) for _ in shares]
        for module, (own, weights) in zip(ours, shares, strict=True):
            step(module, BatchNormStatistics(module), own, weights, average)
        return ours

    sent = []
    processes(lambda moved: sent.append(moved) or moved)
    ours = processes(lambda _: sum(sent) / 2)
    step(norm, BatchNormStatistics(norm), seen, [1 / 3] * 3)
    for module in ours:
        for name, value in buffers_of(norm).items():
            torch.testing.assert_close(buffers_of(module)[name], value, atol=1e-6, rtol=1e-6)


def test_a_step_that_is_given_up_leaves_nothing(norm):
    statistics, before = BatchNormStatistics(norm), buffers_of(norm)
    statistics.begin_step()
    norm(batches(1)[0])
    statistics.accumulate(0.5)
    norm(torch.full((8, 4), math.nan))
    statistics.restore()
    assert all(torch.equal(value, before[name]) for name, value in buffers_of(norm).items())


@pytest.mark.parametrize("void", [True, False])
def test_a_void_step_changes_nothing(norm, void):
    before, seen = buffers_of(norm), torch.full((8, 4), math.nan if void else 2.0)
    step(norm, BatchNormStatistics(norm), [seen], [1.0], is_void=torch.tensor(void))
    same = all(torch.equal(value, before[name]) for name, value in buffers_of(norm).items())
    assert same == void


def test_a_module_without_batch_normalization():
    module = nn.Linear(3, 3)
    step(module, BatchNormStatistics(module), [torch.ones(2, 3)], [1.0])
