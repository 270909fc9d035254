"""Whatever a command can do, one call of the library can: every option has its argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import typer.main

import memsim
from memsim.cli import app

SHOWN = {"quiet", "verbose"}
"""Options of all commands that say what is shown: a listener decides, and `print` shows the result."""


@dataclass(frozen=True)
class Call:
    """The library's side of a command."""

    function: Callable[..., Any]
    groups: tuple[type, ...] = ()
    """Dataclasses that the function takes, whose fields are options."""
    elsewhere: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """Options that are functions or methods of the result."""

    @property
    def arguments(self) -> set[str]:
        """The names of all arguments."""
        names = set(inspect.signature(self.function).parameters)
        return names | {each.name for group in self.groups for each in fields(group)} | set(self.elsewhere)


RESULT = memsim.EvaluationResult
CALLS = {
    "map": Call(memsim.map_checkpoint, (), {"json": memsim.MapResult.to_dict, "report": memsim.MapResult.write_report}),
    "eval": Call(
        memsim.evaluate,
        (memsim.Decoding, memsim.Findings, memsim.Sharing),
        {
            "json": RESULT.to_dict,
            "report": RESULT.write_report,
            "figure": RESULT.write_figure,
            "hypotheses": RESULT.write_hypotheses,
            "worst": RESULT.parts,
            "merge": memsim.merge_results,
        },
    ),
}


@pytest.mark.parametrize("command", CALLS)
def test_every_option_has_an_argument(command: str) -> None:
    parameters = typer.main.get_command(app).commands[command].params
    names = {parameter.opts[0].lstrip("-").replace("-", "_") for parameter in parameters}
    assert len(names) > 5
    assert names - SHOWN - CALLS[command].arguments == set()


@pytest.mark.parametrize("command", CALLS)
def test_every_argument_is_documented(command: str) -> None:
    documented = inspect.getdoc(CALLS[command].function) or ""
    for name in inspect.signature(CALLS[command].function).parameters:
        assert f"\n    {name}: " in documented, name
