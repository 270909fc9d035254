"""Exceptions that the command line shows as one line: errors that a user can cause (exit 2), and interruption."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_MOST_CHARACTERS = 1000


class InputError(ValueError):
    """Bad input, with a message that says what is wrong, where (file, key, line), and what would be right.

    >>> try:
    ...     memsim.load_hardware({"base": "physical", "adc": {"bit": 6}})
    ... except memsim.InputError as error:
    ...     print(error)
    hardware: adc.bit: unknown key (nearest: adc.bits)

    The middle of a very long line of the message is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(_in_short, message.split("\n"))))


@contextmanager
def naming(place: object) -> Iterator[None]:
    """Open a block whose InputErrors begin with `place`, such as the path of the file that is wrong."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _in_short(line: str) -> str:
    half = _MOST_CHARACTERS // 2
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Interruption by a signal, with the finished work saved, so that it can be resumed.

    `by_keyboard`: whether the signal was Ctrl-C.
    """

    def __init__(self, message: str, *, by_keyboard: bool) -> None:
        super().__init__(message)
        self.by_keyboard = by_keyboard
