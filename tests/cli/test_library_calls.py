"""Every command has a library call: each of its options is an argument of that call, or belongs to its result."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import typer

import memsim
from memsim.cli import app

GROUP = typer.main.get_command(app)
CALLS: dict[str, Callable[..., object]] = {"lm": memsim.estimate_language_model, "qat": memsim.train}
ELSEWHERE: dict[str, dict[str, Callable[..., object]]] = {"lm": {}, "qat": {"json": memsim.TrainingResult.to_dict}}
"""The options that another call, or a method of the result, stands for."""
TERMINAL = {"quiet": "listener", "help": ""}
"""The options about the terminal, and the arguments that stand for them."""


@pytest.mark.parametrize("command", CALLS)
def test_every_option_is_an_argument(command: str) -> None:
    arguments = inspect.signature(CALLS[command]).parameters
    assert "listener" in arguments
    known = set(arguments) | set(ELSEWHERE[command]) | set(TERMINAL)
    for parameter in GROUP.commands[command].params:  # type: ignore[attr-defined]
        names = {name.lstrip("-").replace("-", "_") for name in (*parameter.opts, parameter.name)}
        assert names & known, parameter.name
    for function in ELSEWHERE[command].values():
        assert function.__doc__


@pytest.mark.parametrize("command", CALLS)
def test_the_defaults_are_the_same(command: str) -> None:
    arguments = inspect.signature(CALLS[command]).parameters
    for parameter in GROUP.commands[command].params:  # type: ignore[attr-defined]
        if parameter.name in arguments and not parameter.required:
            assert (parameter.default or None) == (arguments[parameter.name].default or None), parameter.name
