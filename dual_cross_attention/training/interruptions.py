"""Ctrl-C and SIGTERM as requests to save and leave, where a batch system or a person wants the machine back."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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

    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)} if in_main else {}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
        self._before: dict[int, object] = {}
        self._entered = 0

    def __enter__(self) -> "Interruptions":
        self._entered += 1
        if self._entered == 1 and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._entered -= 1
        if not self._entered:
            for number, handler in self._before.items():
                signal.signal(number, handler)

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
        if os.getpid() != self._process:  # a reading process, forked since: whoever forked it decides
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
