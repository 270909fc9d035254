"""Help texts in which flags, which take no value, show none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A subcommand."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_values_of_flags(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with _told_of_broken_pipes():
            super().format_help(ctx, formatter)


class Group(TyperGroup):
    """The command that has subcommands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_values_of_flags(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with _told_of_broken_pipes():
            super().format_help(ctx, formatter)


@contextmanager
def _told_of_broken_pipes() -> Iterator[None]:
    """BrokenPipeError where rich, which prints the help, would end the process: whoever reads has read enough."""
    try:
        yield
    except SystemExit:
        raise BrokenPipeError from None


def _without_values_of_flags(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters
