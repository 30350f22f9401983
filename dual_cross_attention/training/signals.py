"""Ctrl-C and SIGTERM as requests to save and leave, where a batch system or a person wants the machine back."""

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

IMPATIENT = 1.0
"""Seconds between two Ctrl-C that are two: launchers pass on the one that the terminal has sent to all already."""
LEFT_EARLY = "left before the first step; the same command starts again, from the last checkpoint if there is one"


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Within this, a signal ends the process (in the main thread): while PyTorch is loaded, nothing can be raised."""

    def end(number: int, _: FrameType | None) -> None:
        print(f"dcal: error: {signal.Signals(number).name}: {LEFT_EARLY}", file=sys.stderr, flush=True)
        os._exit(75)

    before = _catch(end)
    try:
        yield
    finally:
        _put_back(before)


class Interruptions:
    """Signals, caught while this is used as a context (in the main thread); also by one within another.

    The first one is a request, which the training looks for between two batches. A second Ctrl-C leaves at once, with
    exit status 130 and nothing saved.

    Attributes:
        requested: name of the signal that came; None as long as none did.
    """

    def __init__(self):
        self.requested: str | None = None
        self._process = os.getpid()
        self._first = 0.0
        self._raises = False
        self._before: dict[int, Any] = {}
        self._entered = 0

    def __enter__(self) -> "Interruptions":
        self._entered += 1
        if self._entered == 1:
            self._before = _catch(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered -= 1
        if not self._entered:
            _put_back(self._before)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this, a signal raises InterruptedRun wherever the program is: where nothing can be left half done."""
        self._raises = True
        try:
            if self.requested:
                raise InterruptedRun(self.requested)
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker, forked since: whoever forked it decides
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        now = time.monotonic()
        if self.requested:
            if number == signal.SIGINT and now - self._first > IMPATIENT:
                print("dcal: left at once, nothing saved since the last checkpoint", file=sys.stderr, flush=True)
                os._exit(128 + number)
            return
        self.requested, self._first = signal.Signals(number).name, now
        if self._raises:
            raise InterruptedRun(self.requested)


def _catch(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Has Ctrl-C and SIGTERM handled; returns the handlers before, for `_put_back`. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}


def _put_back(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
