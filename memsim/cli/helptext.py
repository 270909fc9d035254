"""Help texts that show no value for flags."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class _Plain:
    """Mixin for command classes: help without values for flags, and without an exit when the reader has left."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; flags among them have an empty metavar."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return parameters

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; raise BrokenPipeError when its reader has left, where rich would end the process."""
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        except SystemExit:
            raise BrokenPipeError from None


class Command(_Plain, TyperCommand):
    """A subcommand."""


class Group(_Plain, TyperGroup):
    """A command with subcommands."""
