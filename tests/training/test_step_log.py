"""Means of what steps report, and the end of a run that diverges."""

import json
import math

import pytest
import torch

from dual_cross_attention.errors import TrainingDivergedError
from dual_cross_attention.training.step_log import StepLog, combine, means


def log_of(interval=1):
    return StepLog(interval)


def step(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.parametrize("interval", [1, 2, 3, 100])
def test_means_and_latest(interval):
    log = log_of(interval)
    log.start_epoch(0)
    for i in range(7):
        log.add(step(loss=float(i), w_sa=0.1 * i, **({"grad_norm": 10.0 * i} if i % 3 == 2 else {})))
    assert means(log.sums()) == pytest.approx({"loss": 3.0, "w_sa": 0.3, "grad_norm": (20 + 50) / 2})
    assert log.latest == pytest.approx({"loss": 6.0, "w_sa": 0.6, "grad_norm": 50.0})
    log.start_epoch(7)
    log.add(step(loss=100.0))
    assert means(log.sums()) == {"loss": 100.0}


def test_device_is_read_at_intervals_only():
    log = log_of(3)
    seen = []
    for i in range(7):
        log.add(step(loss=float(i)))
        seen.append(log.latest.get("loss"))
    assert seen == [None, None, 2.0, 2.0, 2.0, 5.0, 5.0]


def test_keeps_no_graph():
    log = log_of(3)
    loss = torch.ones((), requires_grad=True) * 2
    log.add({"loss": loss})
    assert not log._pending[0][0]["loss"].requires_grad


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"loss": math.nan, "loss_sa": 1.0, "loss_glca": math.nan}, "the loss of branch 'glca' is nan"),
        ({"loss": math.inf, "loss_sa": math.inf, "loss_glca": 1.0}, "the loss of branch 'sa' is inf"),
        ({"loss": math.nan, "loss_sa": math.nan, "grad_norm": math.nan}, "the loss of branch 'sa' is nan"),
        ({"loss": math.nan, "loss_sa": 1.0, "w_sa": math.nan}, "loss is nan, w_sa is nan"),
        ({"loss": math.nan, "loss_sa": 1.0}, "loss is nan"),
        ({"loss": 1.0, "loss_sa": 1.0, "grad_norm": math.inf}, "the gradient's norm is inf"),
    ],
)
def test_non_finite_values_are_named_with_their_step(interval, values, named):
    log = log_of(interval)
    log.start_epoch(40)
    with pytest.raises(TrainingDivergedError) as raised:
        for _ in range(5):
            log.add(step(loss=1.0, loss_sa=1.0))
        log.add(step(**values))
        log.add(step(loss=math.nan))  # what follows is not the cause
        log.sums()
    message = str(raised.value)
    assert message == f"training diverged at step 46: {named}"


def test_an_epoch_resumes_with_its_sums():
    whole, part = log_of(), log_of()
    for i in range(5):
        whole.add(step(loss=0.1 * i))
    for i in range(3):
        part.add(step(loss=0.1 * i))
    resumed = log_of()
    resumed.start_epoch(part.step, json.loads(json.dumps(part.sums())), part.latest)
    assert (resumed.step, resumed.latest) == (3, part.latest)
    for i in range(3, 5):
        resumed.add(step(loss=0.1 * i))
    assert resumed.sums() == whole.sums()  # to the bit


def test_processes_count_by_their_share_of_a_step():
    """Two micro-batches of three in the first process, one in the second: the mean is that of all three."""
    first, second = log_of(), log_of()
    first.add(step(loss=(1.0 + 2.0) / 2, only=5.0), weight=2 / 3)
    second.add(step(loss=6.0), weight=1 / 3)
    assert means(combine([first.sums(), second.sums()])) == pytest.approx({"loss": 3.0, "only": 5.0})
    idle = log_of()
    idle.add({}, weight=0.0)  # its only micro-batch was a filler
    assert means(combine([first.sums(), idle.sums(), second.sums()]))["loss"] == pytest.approx(3.0)
