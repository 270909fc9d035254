"""What long jobs show: a bar on a terminal, plain lines elsewhere, nothing when quiet. All of it on standard error."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PIPED_COLUMNS = 120
"""The width of tables that are not written to a terminal."""

stderr = Console(stderr=True)
stdout = Console()
if not stdout.is_terminal:
    stdout.width = PIPED_COLUMNS
if not stderr.is_terminal:
    stderr.soft_wrap = True

LINE_SECONDS = 60.0
"""Without a terminal, a job says how far it is this often."""


def say(message: str) -> None:
    """A line of information."""
    stderr.print(message, style="dim", highlight=False, markup=False)


def warn(message: str) -> None:
    """A line that matters although the command goes on."""
    stderr.print(f"warning: {message}", style="yellow", highlight=False, markup=False)


def hush(quiet: bool) -> None:
    """With `quiet`, warnings of the library (resampled audio) are left out, too."""
    logging.getLogger("memsim").setLevel(logging.ERROR if quiet else logging.WARNING)


class Draw(Protocol):
    """Called with what is running, the fraction of it done, and what else there is to say of it now."""

    def __call__(self, name: str, done: float, detail: str = "") -> None: ...


@contextmanager
def pass_progress(quiet: bool) -> Iterator[Draw]:
    """A function to call at every step of any number of jobs; one may begin at any fraction."""
    hush(quiet)
    if quiet:
        yield lambda name, done, detail="": None
    elif stderr.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=stderr, transient=True) as bar:
            tasks: dict[str, TaskID] = {}

            def draw(name: str, done: float, detail: str = "") -> None:
                if name not in tasks:
                    tasks[name] = bar.add_task(name, total=1.0, detail=detail)
                    bar.reset(tasks[name], completed=done)  # type: ignore[arg-type] # not from 0: ETA
                bar.update(tasks[name], completed=done, detail=detail)

            yield draw
    else:
        yield _lines()


def _lines() -> Draw:
    started: dict[str, tuple[float, float]] = {}  # when, and at which fraction
    said: dict[str, float] = {}

    def line(name: str, done: float, detail: str = "") -> None:
        now = time.monotonic()
        start, start_done = started.setdefault(name, (now, done))
        if done >= 1.0:
            stderr.print(f"{name}: done in {now - start:.1f} s", highlight=False)
        elif now - said.setdefault(name, now) >= LINE_SECONDS:
            said[name] = now
            left = (now - start) * (1 - done) / max(done - start_done, 1e-9)
            so_far = f"{done:.0%}, {detail}" if detail else f"{done:.0%}"
            stderr.print(f"{name}: {so_far}, about {left:.0f} s left", highlight=False)

    return line
