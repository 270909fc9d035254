"""Errors that a user can cause. The command line prints them as one line and exits with 2."""


class InputError(ValueError):
    """Bad input: says what is wrong, where (file, key, line), and what would be right."""
