"""SIGINT (Ctrl-C) and SIGTERM as requests to save and exit."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from dual_cross_attention.errors import InterruptedRun

REPEAT_SECONDS = 1.0
"""Two SIGINT within this time count as one: the terminal signals all processes, and launchers forward it once more."""
LEFT_EARLY = "left before the first step; the same command starts again, from the last checkpoint if there is one"
"""Message of a run that a signal ends before its first step."""


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Within this context, a signal ends the process with status 75 (main thread only).

    For importing PyTorch: an exception raised inside of its C++ initialization would be lost.
    """

    def exit_now(number: int, _: FrameType | None) -> None:
        print(f"dcal: error: {signal.Signals(number).name}: {LEFT_EARLY}", file=sys.stderr, flush=True)
        os._exit(75)

    before = _install(exit_now)
    try:
        yield
    finally:
        _restore(before)


class SignalHandler:
    """Catches signals while it is used as a context (main thread only); contexts may be nested.

    The first signal is a request, which the training loop reads between two micro-batches. A second SIGINT exits at
    once, with status 130 and without saving.

    Attributes:
        requested: name of the signal that came; None until then.
    """

    def __init__(self):
        self.requested: str | None = None
        self._pid = os.getpid()
        self._requested_at = 0.0
        self._raises = False
        self._before: dict[int, Any] = {}
        self._depth = 0

    def __enter__(self) -> "SignalHandler":
        self._depth += 1
        if self._depth == 1:
            self._before = _install(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            _restore(self._before)

    @contextmanager
    def raise_immediately(self) -> Iterator[None]:
        """Within this context, a signal raises InterruptedRun wherever the program is; for code that writes nothing."""
        self._raises = True
        try:
            if self.requested:
                raise InterruptedRun(self.requested)
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a DataLoader worker, forked since: its parent decides
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        now = time.monotonic()
        if self.requested:
            if number == signal.SIGINT and now - self._requested_at > REPEAT_SECONDS:
                print("dcal: left at once, nothing saved since the last checkpoint", file=sys.stderr, flush=True)
                os._exit(128 + number)
            return
        self.requested, self._requested_at = signal.Signals(number).name, now
        if self._raises:
            raise InterruptedRun(self.requested)


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Sets the handler of SIGINT and SIGTERM; returns the previous ones. Other threads than the main one cannot."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
