"""Allotment of bits, copies and digital layers by measured errors of products, under a budget.

The layers are mapped at every setting on offer, one by one, and the errors of their products on calibration inputs are
measured, with all that the recipe and the hardware do to them. The predicted rise of the network's loss is the square
of the relative error times the layer's sensitivity (see `memsim.nn.sensitivity`), and rises are taken to add up.
"""

from __future__ import annotations

import glob
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from statistics import median
from typing import Any

from memsim.crossbar.cost import ArrayCost
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from memsim.nn.plan import MappedLayer, Plan
from memsim.post_training.allotment import Allotment, LayerAllotment, cheapest_rise
from memsim.post_training.recipe import AllotConfig, MappingRecipe

_PICO = 1_000_000
"""Energies are counted in millionths of a picojoule."""


def allotted(
    spec: HardwareSpec,
    plan_on: Callable[[HardwareSpec], Plan],
    recipe: MappingRecipe,
    statistics: Mapping[str, InputStatistics],
    trained: Collection[str],
    errors_on: Callable[[Plan, Callable[[float], None]], Iterable[tuple[str, float]]],
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[HardwareSpec, Allotment]:
    """Return `spec` with the settings that `recipe.allot` chooses, as overrides and digital layers, and the choice.

    Layers keep their bits where an override names these, where they were trained with scales, and where their inputs
    are not known. The chosen settings are no changes of the spec that a user asked for.

    Args:
        spec: the hardware.
        plan_on: plans the layers of the network on hardware.
        recipe: the recipe, with an `allot` section.
        statistics: the inputs, by matrix.
        trained: the matrices that were trained with scales, by name.
        errors_on: maps the layers of a plan, all with known inputs, and yields the relative error of each one's
            product; it is given a function to be called with the fraction that is done.
        progress: is called with the fraction of the measurements that is done.

    Raises:
        InputError: where nothing is known of the inputs, and where the budget does not allow the least settings.
    """
    config = recipe.allot
    if config is None:
        raise ValueError(f"mapping {recipe.name} allots nothing")
    plan = plan_on(spec)
    named = [override.match for override in spec.overrides if {"bits", "copies"} & set(override.weights or {})]
    given = {
        layer.name
        for layer in plan.mapped
        if layer.name not in statistics
        or layer.name in trained
        or any(fnmatchcase(layer.name, match) for match in named)
    }
    settings = sorted(
        itertools.product(config.bits, config.copies), key=lambda setting: (setting[0] * setting[1], setting)
    )
    errors: dict[str, list[float]] = {layer.name: [] for layer in plan.mapped if layer.name not in given}
    on_setting: list[dict[str, MappedLayer]] = []
    for number, setting in enumerate(settings):
        layers = [layer for layer in plan_on(_with_overrides(spec, {"*": setting})).mapped if layer.name in errors]
        on_setting.append({layer.name: layer for layer in layers})

        def on_part(done: float, before: int = number) -> None:
            progress((before + done) / len(settings))

        for name, error in errors_on(Plan(tuple(layers), ()), on_part):
            errors[name].append(error)
    sensitivities = _sensitivities(errors, statistics)
    rises = {name: [sensitivities[name] * error**2 for error in found] for name, found in errors.items()}
    digital = _kept_digital(plan, rises, config.digital)
    chosen = [layer for layer in plan.mapped if layer.name in errors and layer.name not in digital]

    def cost(layer: MappedLayer) -> int:
        return _cost(layer, config, statistics.get(layer.name))

    costs = [[cost(on[layer.name]) for on in on_setting] for layer in chosen]
    fixed = [layer for layer in plan.mapped if layer.name in given]
    taken = sum(map(cost, fixed))
    shares = [_share(layer, config, statistics.get(layer.name)) for layer in (*chosen, *fixed)]
    scale = sum(shares) * (_PICO if config.budget == "picojoules_per_mac" else 1)
    if config.budget == "picojoules_per_mac" and chosen and not any(map(any, costs)):
        raise InputError(
            f"mapping {recipe.name}: allot.budget: hardware {spec.name} has no converters, whose energy it bounds; use "
            "cells_per_weight or bits_per_weight"
        )
    picked = cheapest_rise(costs, [rises[layer.name] for layer in chosen], math.floor(config.at_most * scale) - taken)
    if picked is None:
        least = (taken + sum(map(min, costs))) / scale
        raise InputError(
            f"mapping {recipe.name}: allot.at_most: {config.at_most:g} {config.budget.replace('_', ' ')} are too few: "
            f"with the least bits and copies on offer, these layers take {least:.4g}"
        )
    found = {layer.name: LayerAllotment(layer.tiling.bits, layer.tiling.copies) for layer in fixed}
    found |= {name: LayerAllotment(None, rise=0.0) for name in digital}
    for layer, index in zip(chosen, picked, strict=True):
        found[layer.name] = LayerAllotment(*settings[index], rises[layer.name][index])
    spent = (taken + sum(own[index] for own, index in zip(costs, picked, strict=True))) / scale if scale else 0.0
    is_of_loss = any(statistics[name].sensitivity is not None for name in errors)
    in_order = {layer.name: found[layer.name] for layer in plan.mapped}
    resolved = _with_overrides(
        spec,
        {glob.escape(layer.name): settings[index] for layer, index in zip(chosen, picked, strict=True)},
        [glob.escape(name) for name in digital],
    )
    return resolved, Allotment(config, spent, is_of_loss, in_order)


def _with_overrides(
    spec: HardwareSpec, settings: Mapping[str, tuple[int, int]], digital: list[str] | None = None
) -> HardwareSpec:
    """Return `spec` with the bits and copies of `settings` by glob, and more `digital` layers; with its changes."""
    values = spec.to_dict()
    own: list[dict[str, Any]] = [
        {"match": match, "weights": {"bits": bits, **({} if copies == spec.weights.copies else {"copies": copies})}}
        for match, (bits, copies) in settings.items()
    ]
    changed = {"overrides": [*values["overrides"], *own], "digital": [*values["digital"], *(digital or [])]}
    return spec.with_settings(changed, flag="allot: {key}").with_changes(spec.changes)


def _sensitivities(errors: Mapping[str, list[float]], statistics: Mapping[str, InputStatistics]) -> dict[str, float]:
    """Return the sensitivity of each layer: the median of the others where it is not known, and 1 where none is."""
    known = {name: statistics[name].sensitivity for name in errors}
    usual = median([value for value in known.values() if value is not None] or [1.0])
    return {name: usual if value is None else value for name, value in known.items()}


def _kept_digital(plan: Plan, rises: Mapping[str, list[float]], share: float) -> list[str]:
    """Return the layers whose worst setting raises the loss most a weight, up to a `share` of the weights on arrays."""
    weights = {layer.name: layer.tiling.weights for layer in plan.mapped}
    left, found = share * plan.weights_on_arrays, []
    for name in sorted(rises, key=lambda name: -max(rises[name]) / weights[name]):
        if weights[name] <= left:
            found.append(name)
            left -= weights[name]
    return found


def _share(layer: MappedLayer, config: AllotConfig, statistics: InputStatistics | None) -> int:
    """Return the weights of a layer, or its multiplications on the calibration data: what its cost is spread over."""
    if config.budget == "picojoules_per_mac":
        return layer.tiling.weights * _reads(statistics)
    return layer.tiling.weights


def _cost(layer: MappedLayer, config: AllotConfig, statistics: InputStatistics | None) -> int:
    """Return the part of the budget, times its unit, that a layer takes with the bits and copies that it has."""
    tiling = layer.tiling
    if config.budget == "bits_per_weight":
        return tiling.weights * tiling.bits
    if config.budget == "cells_per_weight":
        return tiling.weights * 2 * tiling.slices * tiling.copies
    arrays = ArrayCost.of(tiling, layer.spec)
    return math.ceil((arrays.dac_joules + arrays.adc_joules) * 1e12 * _PICO * _reads(statistics))


def _reads(statistics: InputStatistics | None) -> int:
    """Return the number of input rows in the calibration data; 1 where it is not known, as for embeddings."""
    return 1 if statistics is None or statistics.is_one_hot else max(1, round(float(statistics.weights.sum())))
