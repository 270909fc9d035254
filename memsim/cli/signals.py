"""Signals that ask a long job to save its work and stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from memsim.errors import Stopped
from memsim.launch import is_torchrun

REPEAT_SECONDS = 1.0
"""A signal within this many seconds of the first counts as the same one, as launchers send it a second time."""


class StopSignals:
    """The first stop signal since `noted_stop_signals` was entered."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._seconds = 0.0

    def __call__(self) -> int | None:
        """Return the number of the first signal, or None."""
        return self.number

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: note the first one, and raise KeyboardInterrupt for a later one."""
        if self.number is None:
            self.number, self._seconds = number, time.monotonic()
            if os.isatty(2):  # not by print, which the signal may have interrupted
                os.write(2, b"\nmemsim: stopping after this step; a second signal stops at once\n")
        elif time.monotonic() - self._seconds >= REPEAT_SECONDS and not is_torchrun():
            signal.default_int_handler(number, frame)


@contextmanager
def noted_stop_signals() -> Iterator[StopSignals]:
    """Note Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 once until the block ends; the next one raises KeyboardInterrupt.

    Under torchrun the next one is ignored, because torchrun signals all processes as soon as one of them has left, and
    kills those that take too long. For the same reason, a process that has saved its work and leaves by `Stopped`
    ignores signals other than Ctrl-C from then on.
    """
    stops = StopSignals()
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, stops.note) for number in numbers}
    try:
        yield stops
    except Stopped:
        before |= {number: signal.SIG_IGN for number in numbers if number != signal.SIGINT}
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
