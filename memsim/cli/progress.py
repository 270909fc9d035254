"""Progress of long jobs on standard error: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from memsim.listener import Listener

PIPED_COLUMNS = 120
"""The width of tables, in columns, when the output is not a terminal and the variable COLUMNS gives none."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, which the command line handles."""
        raise BrokenPipeError


stderr = _Console(stderr=True, markup=False)  # names of files and layers may contain brackets
stdout = _Console(markup=False)
if not stdout.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
    stdout.width = PIPED_COLUMNS
if not stderr.is_terminal:
    stderr.soft_wrap = True

LINE_SECONDS = 60.0
"""The interval in seconds between lines of progress when the output is not a terminal."""


def say(message: str) -> None:
    """Print a line of information."""
    stderr.print(message, style="dim", highlight=False)


def warn(message: str) -> None:
    """Print a warning; the command goes on."""
    stderr.print(f"warning: {message}", style="yellow", highlight=False)


Draw = Callable[..., None]
"""A function that shows progress, with the arguments of `Listener.progress`."""


@contextmanager
def pass_progress(quiet: bool) -> Iterator[Draw]:
    """Yield a function to call at every step of any number of jobs; one may begin at any fraction.

    With `quiet`, it shows nothing, and warnings of the library (resampled audio) are left out, too.
    """
    logging.getLogger("memsim").setLevel(logging.ERROR if quiet else logging.WARNING)
    if quiet:
        yield lambda *state, **counted: None
    elif stderr.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=stderr, transient=True) as bar:
            jobs: dict[str, tuple[TaskID, _Pace]] = {}

            def draw(name: str, done: float, detail: str = "", total: int = 0, unit: str = "") -> None:
                if name not in jobs:
                    jobs[name] = bar.add_task(name, total=1.0, detail=detail), _Pace(done)
                    bar.reset(jobs[name][0], completed=done)  # type: ignore[arg-type] # for the time left
                task, pace = jobs[name]
                shown = ", ".join(filter(None, [pace.count(done, total, unit), detail]))
                bar.update(task, completed=done, detail=shown)

            yield draw
    else:
        yield _lines()


class TerminalListener(Listener):
    """Shows progress, facts and warnings on standard error.

    Args:
        quiet: Show neither progress nor facts.
        silent: Show no warnings either.
    """

    def __init__(self, *, quiet: bool = False, silent: bool = False) -> None:
        self._quiet, self._silent = quiet, silent
        self._draw: Draw | None = None

    def progress(self, name: str, done: float, detail: str = "", total: int = 0, unit: str = "") -> None:
        """See `Listener`."""
        if self._draw is not None:
            self._draw(name, done, detail, total, unit)

    def say(self, message: str) -> None:
        """See `Listener`."""
        if not self._quiet:
            say(message)

    def warn(self, message: str) -> None:
        """See `Listener`."""
        if not self._silent:
            warn(message)

    @contextmanager
    def working(self) -> Iterator[None]:
        """See `Listener`."""
        with pass_progress(self._quiet) as self._draw:
            yield
        self._draw = None


class _Pace:
    """The speed of a job that begins now at some fraction of its work."""

    def __init__(self, done: float) -> None:
        self._start, self._start_done = time.monotonic(), done

    def seconds(self) -> float:
        """Return the seconds since the job began."""
        return time.monotonic() - self._start

    def left(self, done: float) -> str:
        """Return a text such as `about 95 s left`; an empty one while nothing is done."""
        made = done - self._start_done
        return f"about {_duration(self.seconds() * (1 - done) / made)} left" if made > 0 else ""

    def count(self, done: float, total: int, unit: str) -> str:
        """Return a text such as `120/480 utterances, 3.1/s`; an empty one for a job without a count."""
        if not total:
            return ""
        number = f"{round(done * total):,}/{total:,} {unit}"
        made = (done - self._start_done) * total
        return f"{number}, {_rate(made / self.seconds())}" if made > 0 and self.seconds() > 0 else number


def _rate(per_second: float) -> str:
    """Return the rate in the first unit of time (s, min, h) in which it is at least 1."""
    for seconds, unit in ((1, "s"), (60, "min"), (3600, "h")):
        if per_second * seconds >= 1 or unit == "h":
            break
    rate = per_second * seconds
    return f"{rate:,.0f}/{unit}" if rate >= 100 else f"{rate:.2g}/{unit}"


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _lines() -> Draw:
    paces: dict[str, _Pace] = {}
    said: dict[str, float] = {}

    def line(name: str, done: float, detail: str = "", total: int = 0, unit: str = "") -> None:
        pace = paces.setdefault(name, _Pace(done))
        if done >= 1.0:
            whole = f"{total:,} {unit} " if total else ""
            stderr.print(f"{name}: {whole}done in {pace.seconds():.1f} s", highlight=False)
        elif pace.seconds() - said.setdefault(name, 0.0) >= LINE_SECONDS:
            said[name] = pace.seconds()
            parts = [f"{done:.0%}", pace.count(done, total, unit), detail, pace.left(done)]
            stderr.print(f"{name}: {', '.join(filter(None, parts))}", highlight=False)

    return line
