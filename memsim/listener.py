"""Following a long call: what a command line shows, and what a caller in Python may want to know."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


class Listener:
    """Follows a call of the library. This one shows nothing, and passes warnings on to Python's `warnings`.

    A command line, a notebook or a server overrides the methods for what it shows.
    """

    def progress(self, name: str, done: float, detail: str = "", total: int = 0, unit: str = "") -> None:
        """Report that the fraction `done` of the job `name` is done; with a `total`, of that many units."""

    def say(self, message: str) -> None:
        """Report a fact that is worth knowing."""

    def warn(self, message: str) -> None:
        """Report a problem that does not stop the call."""
        warnings.warn(message, UserWarning, stacklevel=3)

    def working(self) -> AbstractContextManager[None]:
        """Return a context around the work proper, while which progress may be drawn."""
        return _nothing()


@contextmanager
def _nothing() -> Iterator[None]:
    yield
