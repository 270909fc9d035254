"""The error budget: what each effect of the hardware adds to the error of every layer's product.

The effects are switched on one after the other, in the order of `memsim.spec.EFFECTS`. Each step is a hardware spec of
its own (`HardwareSpec.steps`) and runs like any other, on the cells of the chip as far as it programs them alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.nn.deviation import exact_product, product_error, row_squares
from memsim.nn.plan import layer_spec
from memsim.spec import HardwareSpec
from memsim.units import counted


@dataclass(frozen=True)
class LayerBudget:
    """The relative L2 error of a layer's product with the effects up to each one, in the order of EFFECTS."""

    name: str
    errors: Mapping[str, float]
    standard_error: float | None = None
    """Of the error with all effects, over the calibration inputs that it was measured on; None of a single one."""

    @property
    def total(self) -> float:
        """With all effects: the error of the chip."""
        return _last(self.errors)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        spread = {} if self.standard_error is None else {"standard_error": self.standard_error}
        return {"name": self.name, "error": self.total, **spread, "effects": _effects_to_list(self.errors)}


@dataclass(frozen=True)
class Budget:
    """The budgets of all layers on arrays, and their root mean squares: every layer counts the same.

    `against_full_precision`: the products are compared with those of the weights before quantisation, else with those
    of the quantised ones, and quantisation is no part of the budget.
    """

    layers: tuple[LayerBudget, ...]
    against_full_precision: bool

    @property
    def errors(self) -> dict[str, float]:
        """By effect, in order: the root mean square over layers of the error with the effects up to it."""
        effects = self.layers[0].errors
        return {e: math.sqrt(math.fsum(x.errors[e] ** 2 for x in self.layers) / len(self.layers)) for e in effects}

    @property
    def total(self) -> float:
        """The root mean square over layers of the error of the chip."""
        return _last(self.errors)

    def worst_layer(self, effect: str) -> tuple[str, float]:
        """The layer to which `effect` adds the most, and what it adds."""
        added = {layer.name: increments(layer.errors)[effect] for layer in self.layers}
        name = max(added, key=lambda layer: added[layer])
        return name, added[name]

    def like_the_worst(self) -> list[str]:
        """The layers whose errors are within two standard errors of the largest: which is the worst is chance."""
        worst, *others = self.sorted_layers()

        def variance(layer: LayerBudget) -> float:
            return (layer.standard_error or 0.0) ** 2

        near = [x for x in others if worst.total - x.total <= 2 * math.sqrt(variance(worst) + variance(x))]
        return [worst.name, *(layer.name for layer in near)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: effects in order, layers with the largest error first."""
        return {
            "against": "full precision" if self.against_full_precision else "quantised",
            "error": self.total,
            "effects": _effects_to_list(self.errors),
            "layers": [layer.to_dict() for layer in self.sorted_layers()],
        }

    def sorted_layers(self) -> list[LayerBudget]:
        """Those with the largest error first."""
        return sorted(self.layers, key=lambda layer: -layer.total)


def increments(errors: Mapping[str, float]) -> dict[str, float]:
    """What each step adds to the error, as if independent of what was there: the root of the difference of squares.

    Negative where the error becomes less. The signed squares add up to the square of the last error.
    """
    added, before = {}, 0.0
    for effect, error in errors.items():
        difference = error**2 - before**2
        added[effect], before = math.copysign(math.sqrt(abs(difference)), difference), error
    return added


def _last(errors: Mapping[str, float]) -> float:
    """0 where there are no effects at all."""
    return [0.0, *errors.values()][-1]


def _effects_to_list(errors: Mapping[str, float]) -> list[dict[str, Any]]:
    added = increments(errors)
    return [{"effect": effect, "error": error, "added": added[effect]} for effect, error in errors.items()]


def _standard_error(squares: Tensor, sizes: Tensor) -> float | None:
    """The standard error of sqrt(sum of `squares` / sum of `sizes`), both [inputs], by the jackknife over inputs."""
    count = len(squares)
    if count < 2:
        return None
    left = (squares.sum() - squares).clamp(min=0) / (sizes.sum() - sizes)
    return math.sqrt((count - 1) * float(left.nan_to_num(0.0, 0.0).sqrt().var(correction=0)))


def layer_budget(
    matrix: MappedMatrix,
    steps: Mapping[str, HardwareSpec],
    seed: int,
    statistics: InputStatistics,
    weight: Tensor | None = None,
) -> LayerBudget:
    """The budget of `matrix`, a calibrated one of the chip that was programmed from `seed` under the last of `steps`.

    The inputs are the rows that `statistics` keeps. Errors are relative to their product with `weight` [out, in /
    groups] in full precision; without it, with the quantised weights, and the step of quantisation is left out. 0 where
    that product is 0.
    """
    rows = statistics.sample.to(matrix.levels.device)
    weight_of = matrix.levels.double() * matrix.scale.double()[:, None] if weight is None else weight
    wanted = exact_product(matrix, rows, weight_of)
    errors: dict[str, float] = {}
    before: HardwareSpec | None = None
    for effect, spec in steps.items():
        if effect == "quantisation" and weight is None:
            continue
        own = layer_spec(matrix.name, spec, matrix.spec.weights.bits)
        if before is not None and own.is_same_hardware(before):
            errors[effect] = _last(errors)
        else:
            is_chip = own.is_same_hardware(matrix.spec)
            step = matrix if is_chip else matrix.under(own, seed, statistics)
            errors[effect] = product_error(step, statistics, wanted, seed)
        before = own
    uncertain = _standard_error(*row_squares(matrix, statistics, wanted, seed)) if errors else None
    return LayerBudget(matrix.name, errors, uncertain)


def require_samples(
    path: Path,
    layers: Iterable[str],
    statistics: Mapping[str, InputStatistics],
    remedy: str = "`memsim map --calibrate DATA` measures them",
) -> None:
    """Raise InputError, in the name of the file `path` and with a `remedy`, unless all layers' inputs were measured."""
    missing = [name for name in layers if name not in statistics]
    if missing:
        more = f" and {counted(len(missing) - 1, 'more layer')}" if len(missing) > 1 else ""
        what = f"holds no input statistics for {missing[0]}{more}, and the error budget multiplies their inputs"
        raise InputError(f"{path}: {what}; {remedy}")
