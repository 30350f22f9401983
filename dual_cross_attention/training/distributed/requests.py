"""Requests of ranks to all ranks, agreed on between micro-batches: save, stop, or repeat with smaller chunks."""

from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum

from dual_cross_attention.errors import InterruptedRun
from dual_cross_attention.training.distributed.strategy import DistributedStrategy
from dual_cross_attention.training.oom import OutOfMemory
from dual_cross_attention.training.signals import SignalHandler


class Request(IntEnum):
    """Requests of a rank to all ranks, by priority: all ranks carry out the largest one."""

    NONE = 0
    SAVE = 1  # a checkpoint is due
    STOP = 2  # a signal came
    SPLIT = 3  # out of memory: repeat with smaller chunks


class RankRequests:
    """Exchanges requests between ranks.

    Args:
        strategy: the ranks.
        signals: a signal to any rank is a request to stop.
    """

    def __init__(self, strategy: DistributedStrategy, signals: SignalHandler):
        self.strategy, self.signals = strategy, signals

    def poll(self, request: Request = Request.NONE) -> Request:
        """Sends this rank's request and returns the largest of all; a collective, which waits for the device.

        Raises:
            InterruptedRun: some rank got a signal.
            OutOfMemory: some rank is out of memory.
        """
        largest = Request(self.strategy.all_reduce_max(Request.STOP if self.signals.requested else request))
        if largest == Request.STOP:
            raise InterruptedRun(self.signals.requested or "a signal to another process")
        if largest == Request.SPLIT:
            raise OutOfMemory("another process has too little memory")
        return largest

    def announce_out_of_memory(self) -> None:
        """Makes the next `poll` of all other ranks raise OutOfMemory; call it where they are going to poll."""
        self.strategy.all_reduce_max(Request.SPLIT)

    def interruptible(self) -> AbstractContextManager:
        """Within this context, a signal raises at once, unless other ranks would then wait for this one."""
        return self.signals.raise_immediately() if self.strategy.world_size == 1 else nullcontext()
