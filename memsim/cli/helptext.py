"""Help texts in which flags, which take no value, show none."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A subcommand."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_values_of_flags(super().get_params(ctx))


class Group(TyperGroup):
    """The command that has subcommands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_values_of_flags(super().get_params(ctx))


def _without_values_of_flags(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters
