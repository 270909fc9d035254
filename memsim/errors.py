"""Exceptions that the command line shows as one line: errors that a user can cause (exit 2), and being stopped."""


class InputError(ValueError):
    """Bad input: says what is wrong, where (file, key, line), and what would be right."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A signal stopped the work; what was done is saved and can be resumed. `by_keyboard`: the signal was Ctrl-C."""

    def __init__(self, message: str, *, by_keyboard: bool) -> None:
        super().__init__(message)
        self.by_keyboard = by_keyboard
