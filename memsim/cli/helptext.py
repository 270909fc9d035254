"""Help texts in which flags show no value, as they take none."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class _Plain:
    """Help texts of a command, to be mixed in before its class."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; flags among them have an empty metavar."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return parameters

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; raise BrokenPipeError, where rich would end the process, when its reader has left."""
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        except SystemExit:
            raise BrokenPipeError from None


class Command(_Plain, TyperCommand):
    """A subcommand."""


class Group(_Plain, TyperGroup):
    """The command that has subcommands."""
