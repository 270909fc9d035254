"""Sweeps: settings with several values, and the points of their grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from memsim.config.yaml_file import parse_value
from memsim.errors import InputError
from memsim.evaluation.study import Point
from memsim.spec import HardwareSpec

_CLOSING = {"[": "]", "{": "}", "(": ")"}


def values_of(setting: str) -> tuple[str, list[str]]:
    """The key of `KEY=V1,V2,...` and its values; a comma within brackets or quotes belongs to a value.

    Raises InputError for an empty one among several, and for one given twice.
    """
    key, _, text = setting.partition("=")
    values = _split(text)
    if len(values) > 1:
        for value in values:
            if not value:
                raise InputError(f"--set {setting}: a value between the commas is empty")
            if values.count(value) > 1:
                raise InputError(f"--set {setting}: has the value {value} twice")
    return key.strip(), values


def _split(text: str) -> list[str]:
    values, depth, quote, first = [], 0, "", 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _CLOSING:
            depth += 1
        elif character in _CLOSING.values():
            depth -= 1
        elif character == "," and depth == 0:
            values.append(text[first:place].strip())
            first = place + 1
    return [*values, text[first:].strip()]


def sweep_points(settings: Iterable[str], make: Callable[[list[str]], HardwareSpec]) -> tuple[Point, ...]:
    """The points of the grid that `KEY=V1,V2,...` settings span, the last key's values changing fastest.

    `make` gives the spec for settings of one value each. Raises InputError where a setting cannot be read.
    """
    alternatives = [_alternatives(setting) for setting in settings]
    points = []
    for chosen in itertools.product(*alternatives):
        named: dict[str, Any] = {}
        for several, text in zip(alternatives, chosen, strict=True):
            if len(several) > 1:
                key, _, value = text.partition("=")
                named[key] = parse_value(value, f"--set {text}")
        points.append(Point(named, make(list(chosen))))
    return tuple(points)


def _alternatives(setting: str) -> list[str]:
    """The settings of one value each that it stands for."""
    key, values = values_of(setting)
    return [setting] if len(values) == 1 else [f"{key}={value}" for value in values]
