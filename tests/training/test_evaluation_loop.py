"""The evaluation loop: every image counts once over all ranks, and requests come between whole batches."""

import math
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.errors import InterruptedRun
from dual_cross_attention.inference.evaluation_loop import run_eval_steps
from dual_cross_attention.training import messages
from dual_cross_attention.training.distributed.requests import RankRequests, Request
from dual_cross_attention.training.evaluation_loop import EvaluationLoop
from dual_cross_attention.training.oom import MicroBatchChunks, OutOfMemory, Shortage, catch_out_of_memory
from dual_cross_attention.training.signals import SignalHandler

BATCHES, BATCH_SIZE = 5, 4


class Counting:
    """A task that notes the valid images of each of its steps; steps of more than `limit` images do not fit."""

    def __init__(self, limit=BATCH_SIZE):
        self.limit, self.is_training = limit, True

    def eval(self):
        self.is_training = False

    def reset_metrics(self):
        self.steps = []

    def eval_step(self, batch):
        if len(batch["labels"]) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.steps.append(batch["indices"][batch["valid"]].tolist())

    def compute_metrics(self):
        return {"steps": self.steps}


class Numbered:
    """Batches of consecutive indices, one of which is not valid; the last batch is smaller."""

    def __len__(self):
        return BATCHES

    def read(self, epoch, numbers):
        assert epoch == 0
        for number in numbers:
            indices = torch.arange(
                number * BATCH_SIZE, number * BATCH_SIZE + (3 if number == BATCHES - 1 else BATCH_SIZE)
            )
            yield {"labels": torch.zeros_like(indices), "indices": indices, "valid": indices != 6}


def loop_of(task, tmp_path, rank=0, world_size=1, pad=False, count=1):
    accelerator = SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False))
    polls = []

    def all_reduce_max(number):
        polls.append(Request(number))
        return number

    strategy = SimpleNamespace(
        task=task, accelerator=accelerator, rank=rank, world_size=world_size, sharded=pad, all_reduce_max=all_reduce_max
    )
    chunks = MicroBatchChunks(BATCH_SIZE, 1, 1, tmp_path / f"{rank}.json", torch.device("cpu"), pad)
    chunks.count = count
    loop = EvaluationLoop(
        Numbered(),
        chunks,
        RankRequests(strategy, SignalHandler()),
        UnreadableImages(lambda message: None),
        2,
        lambda chunks, shortage: chunks.double(shortage.reason, "there is no checkpoint yet"),
        Console(quiet=True),
    )
    return loop, polls


@pytest.mark.parametrize(("world_size", "pad", "count"), [(1, False, 1), (2, False, 2), (3, True, 4), (7, True, 1)])
def test_every_valid_image_counts_once(tmp_path, world_size, pad, count):
    of_ranks = []
    for rank in range(world_size):
        loop, polls = loop_of(Counting(), tmp_path, rank, world_size, pad, count)
        of_ranks.append(loop.run("evaluate")["steps"])
        # Before every second batch of this rank, and at the end: as often on all ranks.
        batches = math.ceil(BATCHES / world_size)
        assert len(polls) == math.ceil(batches / 2) + 1
    seen = sorted(index for steps in of_ranks for step in steps for index in step)
    assert seen == [index for index in range(BATCHES * BATCH_SIZE - 1) if index != 6]
    if pad and count == 1:
        assert len({len(steps) for steps in of_ranks}) == 1  # under FSDP, ranks run as many passes


def test_out_of_memory_repeats_all_with_smaller_chunks(tmp_path):
    task = Counting(limit=1)
    loop, polls = loop_of(task, tmp_path, 0, 2)
    steps = loop.run("evaluate")["steps"]
    assert loop.chunks.count == 4 and not task.is_training
    assert [index for step in steps for index in step] == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18]
    assert polls.count(Request.SPLIT) == 2  # the other rank is told each time


def test_the_loop_resets_metrics_first(tmp_path):
    task = Counting()
    for _ in range(2):
        before = []
        run_eval_steps(task, Numbered().read(0, [0, 1]), before_batch=before.append)
        assert task.steps == [[0, 1, 2, 3], [4, 5, 7]] and before == [0, 1]


def test_requests():
    wishes = []
    strategy = SimpleNamespace(world_size=2, all_reduce_max=lambda number: max(number, *wishes))
    signals = SignalHandler()
    requests = RankRequests(strategy, signals)
    wishes[:] = [Request.NONE]
    assert requests.poll() == Request.NONE and requests.poll(Request.SAVE) == Request.SAVE
    wishes[:] = [Request.SPLIT]
    with pytest.raises(OutOfMemory):
        requests.poll(Request.SAVE)
    wishes[:] = [Request.STOP]
    with pytest.raises(InterruptedRun, match="another process"):
        requests.poll()
    wishes[:] = [Request.NONE]
    signals.requested = "SIGTERM"
    with pytest.raises(InterruptedRun, match="SIGTERM"):
        requests.poll()


def test_only_out_of_memory_is_caught():
    def fail(error):
        raise error

    assert catch_out_of_memory(lambda: 3) == (3, None)
    told = catch_out_of_memory(lambda: fail(OutOfMemory("another process")))
    assert told == (None, Shortage("another process", True))
    assert catch_out_of_memory(lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried"))) == (
        None,
        Shortage("CUDA out of memory", False),
    )
    with pytest.raises(RuntimeError, match="other"):
        catch_out_of_memory(lambda: fail(RuntimeError("other")))


@pytest.mark.parametrize(
    ("per_step", "world_size", "expected"),
    [
        (2, 2, "effective batch size 16 (2 ranks × 8 × 1 accumulation step)"),
        (6, 2, "effective batch size 48 (2 ranks × 8 × 3 accumulation steps)"),
        (1, 1, "effective batch size 8 (1 rank × 8 × 1 accumulation step)"),
        (2, 3, "effective batch size 16 (2 micro-batches × 8, on 3 ranks)"),
    ],
)
def test_effective_batch(per_step, world_size, expected):
    assert messages.effective_batch(8, per_step, world_size) == expected
