"""Every command has one library call, and every option has an argument of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import typer.main

import memsim
from memsim.cli import app

GROUP = typer.main.get_command(app)
CALLS: dict[str, Callable[..., object]] = {
    "eval": memsim.evaluate,
    "fit-device": memsim.fit_device,
    "lm": memsim.estimate_language_model,
    "map": memsim.map_checkpoint,
    "qat": memsim.train,
}
GROUPS: dict[str, tuple[type, ...]] = {"eval": (memsim.Decoding, memsim.Findings, memsim.Sharing)}
"""Dataclasses that the call takes, whose fields are options."""
ELSEWHERE: dict[str, dict[str, Callable[..., object]]] = {
    "eval": {
        "json": memsim.EvaluationResult.to_dict,
        "report": memsim.EvaluationResult.write_report,
        "figure": memsim.EvaluationResult.write_figure,
        "hypotheses": memsim.EvaluationResult.write_hypotheses,
        "worst": memsim.EvaluationResult.parts,
        "verbose": memsim.EvaluationResult.parts,
        "merge": memsim.merge_results,
    },
    "map": {
        "report": memsim.MapResult.write_report,
        "json": memsim.MapResult.to_dict,
        "verbose": memsim.MapResult.parts,
    },
    "fit-device": {
        "inspect": memsim.inspect_measurements,
        "report": memsim.DeviceFit.write_report,
        "json": memsim.DeviceFit.to_dict,
        "verbose": memsim.DeviceFit.as_rich,
    },
    "lm": {},
    "qat": {"json": memsim.TrainingResult.to_dict},
}
"""The options that another call, or a method of the result, stands for."""
TERMINAL = {"quiet": "listener", "help": ""}
"""The options about the terminal, and the arguments that stand for them."""


def arguments_of(command: str) -> dict[str, Any]:
    """The arguments of the command's call and the fields of its groups, with their defaults."""
    found = {each.name: each.default for group in GROUPS.get(command, ()) for each in fields(group)}
    return found | {name: each.default for name, each in inspect.signature(CALLS[command]).parameters.items()}


@pytest.mark.parametrize("command", CALLS)
def test_every_option_is_an_argument(command: str) -> None:
    arguments = arguments_of(command)
    assert "listener" in arguments
    known = set(arguments) | set(ELSEWHERE[command]) | set(TERMINAL)
    for parameter in GROUP.commands[command].params:  # type: ignore[attr-defined]
        names = {name.lstrip("-").replace("-", "_") for name in (*parameter.opts, parameter.name)}
        assert names & known, parameter.name
    for function in ELSEWHERE[command].values():
        assert function.__doc__


@pytest.mark.parametrize("command", CALLS)
def test_every_argument_is_documented(command: str) -> None:
    documented = inspect.getdoc(CALLS[command]) or ""
    for name in inspect.signature(CALLS[command]).parameters:
        assert f"\n    {name}: " in documented, name
