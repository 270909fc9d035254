"""Sweeps: settings with several values, and the points of their grid."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from memsim.config.yaml_file import parse_value
from memsim.errors import InputError
from memsim.evaluation.study import Point
from memsim.hardware import HardwareSpec, load_hardware
from memsim.hardware.options import Hardware, change_hardware, choose_hardware
from memsim.networks.mapped_file import stored_spec
from memsim.post_training.recipe import NEAREST, MappingRecipe, load_mapping
from memsim.storage.checkpoint import Checkpoint
from memsim.storage.files import is_file

_CLOSING = {"[": "]", "{": "}", "(": ")"}


def values_of(setting: str) -> tuple[str, list[str]]:
    """Split `KEY=V1,V2,...` into the key and its values; a comma within brackets or quotes belongs to a value.

    Raises InputError for an empty value among several, and for a value given twice.
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


def is_sweep(settings: Iterable[str], mapping: str | None = None) -> bool:
    """Whether any setting such as `KEY=V1,V2,...` has several values, or `mapping` names several recipes."""
    return len(recipes_of(mapping)) > 1 or any(len(values_of(setting)[1]) > 1 for setting in settings)


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
    """Make the points of the grid that `KEY=V1,V2,...` settings span, the last key's values changing fastest.

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
    """Return the settings of one value each that a setting stands for."""
    key, values = values_of(setting)
    return [setting] if len(values) == 1 else [f"{key}={value}" for value in values]


def points_of(
    checkpoint: Checkpoint,
    hardware: Hardware | None,
    bits: int | None,
    cell: str | Path | None,
    settings: Sequence[str],
    recipes: Sequence[MappingRecipe] = (NEAREST,),
) -> tuple[Point, ...]:
    """Return the points that the hardware options describe for `checkpoint`; none for an unchanged mapped file.

    Raises InputError for a spec that cannot be read or would change what a mapped file holds.
    """
    if checkpoint.kind != "mapped":
        return mapped_points(recipes, hardware, bits, cell, settings)
    if settings or any(option is not None for option in (hardware, bits, cell)):
        return sweep_points(settings, partial(_hardware_for_mapped, checkpoint, hardware, bits, cell))
    return ()


def recipes_of(mapping: MappingRecipe | str | Path | Mapping[str, Any] | None) -> tuple[MappingRecipe, ...]:
    """Load the recipe that `mapping` is, or each of those whose names or files it lists between commas.

    Raises InputError for a recipe that cannot be read, for an empty name among several, and for a name given twice.
    """
    names = _split(mapping) if isinstance(mapping, str) and not is_file(Path(mapping)) else []
    if len(names) < 2:
        return (load_mapping(mapping),)
    if "" in names:
        raise InputError(f"--mapping {mapping}: a name between the commas is empty")
    recipes = tuple(map(load_mapping, names))
    for name, count in Counter(recipe.name for recipe in recipes).items():
        if count > 1:
            raise InputError(f"--mapping {mapping}: has the recipe {name} twice")
    return recipes


def mapped_points(
    recipes: Sequence[MappingRecipe],
    hardware: Hardware | None,
    bits: int | None,
    cell: str | Path | None,
    settings: Sequence[str],
) -> tuple[Point, ...]:
    """Return the points of `sweep_points` for each recipe; the swept key `mapping` comes first where there are several.

    Raises InputError as `sweep_points` and `MappingRecipe.on` do.
    """
    found: list[Point] = []
    for recipe in recipes:
        points = sweep_points(settings, partial(mapped_hardware, recipe, hardware, bits, cell))
        if len(recipes) > 1:
            points = tuple(Point({"mapping": recipe.name, **point.settings}, point.spec, recipe) for point in points)
        found += points
    return tuple(found)


def mapped_hardware(
    recipe: MappingRecipe, hardware: Hardware | None, bits: int | None, cell: str | Path | None, settings: Sequence[str]
) -> HardwareSpec:
    """Return the spec that the hardware options describe, with the scales that `recipe` names."""
    return recipe.on(choose_hardware(hardware, bits, cell, settings), settings, bits)


def _hardware_for_mapped(
    checkpoint: Checkpoint,
    hardware: Hardware | None,
    bits: int | None,
    cell: str | Path | None,
    settings: Sequence[str],
) -> HardwareSpec:
    """Return the spec for mapping a mapped file's levels again: `hardware`, or that of the file, with changes."""
    spec, stored_bits = stored_spec(checkpoint)
    if bits is not None and any(b != bits for b in stored_bits.values()):
        found = ", ".join(map(str, sorted(set(stored_bits.values()))))
        raise InputError(
            f"--bits {bits}: {checkpoint.path} was mapped at {found} bits and holds levels, not weights; "
            "map or evaluate the unmapped checkpoint"
        )
    if hardware is not None:
        spec = load_hardware(hardware)
    changed = change_hardware(spec, None, cell, settings)
    for key in ("bits", "scale", "scale_method"):
        wanted = getattr(changed.weights, key)
        if wanted != getattr(spec.weights, key) and (key != "bits" or {wanted} != set(stored_bits.values())):
            raise InputError(
                f"--set weights.{key}={wanted}: {checkpoint.path} holds levels, not weights, and they stay as they "
                "are; map or evaluate the unmapped checkpoint"
            )
    return changed
