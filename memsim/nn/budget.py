"""The error budget: the share of each non-ideality in the error of every layer's product.

The non-idealities are switched on one after the other, in the order of `memsim.hardware.EFFECTS`. Each step is a
hardware spec of its own (`HardwareSpec.steps`) and runs like any other, on the chip's cells where it programs them
alike.
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
from memsim.hardware import HardwareSpec
from memsim.nn.deviation import exact_product, product_error, row_squares
from memsim.nn.plan import layer_spec
from memsim.units import counted


@dataclass(frozen=True)
class LayerBudget:
    """The relative L2 errors of a layer's product, by the last non-ideality that is switched on, in order."""

    name: str
    errors: Mapping[str, float]
    standard_error: float | None = None
    """The standard error of `total` over the calibration inputs; None where there is a single input."""

    @property
    def total(self) -> float:
        """The error with all non-idealities, which is the chip's."""
        return _last(self.errors)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        spread = {} if self.standard_error is None else {"standard_error": self.standard_error}
        return {"name": self.name, "error": self.total, **spread, "effects": _errors_to_list(self.errors)}


@dataclass(frozen=True)
class Budget:
    """The budgets of all layers on arrays, and their root mean squares, in which all layers count the same.

    With `against_full_precision` the products are compared with those of the weights before quantisation. Otherwise
    they are compared with those of the quantised weights, and quantisation is not in the budget.
    """

    layers: tuple[LayerBudget, ...]
    against_full_precision: bool

    @property
    def errors(self) -> dict[str, float]:
        """The root mean square error over layers, by the last non-ideality that is switched on, in order."""
        names = self.layers[0].errors
        return {n: math.sqrt(math.fsum(x.errors[n] ** 2 for x in self.layers) / len(self.layers)) for n in names}

    @property
    def total(self) -> float:
        """The root mean square over layers of the chip's error."""
        return _last(self.errors)

    def worst_layer(self, nonideality: str) -> tuple[str, float]:
        """Return the layer to whose error `nonideality` adds the most, and how much it adds."""
        added = {layer.name: increments(layer.errors)[nonideality] for layer in self.layers}
        name = max(added, key=lambda layer: added[layer])
        return name, added[name]

    def like_the_worst(self) -> list[str]:
        """Return the layers whose errors are within two standard errors of the largest, the worst layer first."""
        worst, *others = self.sorted_layers()

        def variance(layer: LayerBudget) -> float:
            return (layer.standard_error or 0.0) ** 2

        near = [x for x in others if worst.total - x.total <= 2 * math.sqrt(variance(worst) + variance(x))]
        return [worst.name, *(layer.name for layer in near)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: non-idealities in order, layers with the largest error first."""
        return {
            "against": "full precision" if self.against_full_precision else "quantised",
            "error": self.total,
            "effects": _errors_to_list(self.errors),
            "layers": [layer.to_dict() for layer in self.sorted_layers()],
        }

    def sorted_layers(self) -> list[LayerBudget]:
        """Return the layers, the one with the largest error first."""
        return sorted(self.layers, key=lambda layer: -layer.total)


def increments(errors: Mapping[str, float]) -> dict[str, float]:
    """Return the error that each step adds, as if independent of the others: the root of the difference of squares.

    It is negative where the error becomes less. The signed squares add up to the square of the last error.
    """
    added, before = {}, 0.0
    for name, error in errors.items():
        difference = error**2 - before**2
        added[name], before = math.copysign(math.sqrt(abs(difference)), difference), error
    return added


def _last(errors: Mapping[str, float]) -> float:
    """Return the last error, 0 where there are none."""
    return [0.0, *errors.values()][-1]


def _errors_to_list(errors: Mapping[str, float]) -> list[dict[str, Any]]:
    added = increments(errors)
    return [{"effect": name, "error": error, "added": added[name]} for name, error in errors.items()]


def _standard_error(squares: Tensor, sizes: Tensor) -> float | None:
    """Return the standard error of sqrt(sum of `squares` / sum of `sizes`), both [inputs], by the jackknife."""
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
    """Return the budget of a calibrated `matrix` of the chip that was programmed from `seed` under the last of `steps`.

    The inputs are the rows that `statistics` keeps. Errors are relative to their product with `weight` [out, in /
    groups] in full precision. Without it they are relative to the product with the quantised weights, and the step of
    quantisation is left out. They are 0 where that product is 0.
    """
    rows = statistics.sample.to(matrix.levels.device)
    wanted = exact_product(matrix, rows, weight)
    errors: dict[str, float] = {}
    before: HardwareSpec | None = None
    for name, spec in steps.items():
        if name == "quantisation" and weight is None:
            continue
        own = layer_spec(matrix.name, spec, matrix.spec.weights.bits)
        if before is not None and own.is_same_hardware(before):
            errors[name] = _last(errors)
        else:
            is_chip = own.is_same_hardware(matrix.spec)
            step = matrix if is_chip else matrix.under(own, seed, statistics)
            errors[name] = product_error(step, statistics, wanted, seed)
        before = own
    uncertain = _standard_error(*row_squares(matrix, statistics, wanted, seed)) if errors else None
    return LayerBudget(matrix.name, errors, uncertain)


def require_samples(
    path: Path,
    layers: Iterable[str],
    statistics: Mapping[str, InputStatistics],
    remedy: str = "`memsim map --calibrate DATA` measures them",
) -> None:
    """Raise InputError, which names the file `path` and a `remedy`, unless the inputs of all `layers` were measured."""
    missing = [name for name in layers if name not in statistics]
    if missing:
        more = f" and {counted(len(missing) - 1, 'more layer')}" if len(missing) > 1 else ""
        what = f"holds no input statistics for {missing[0]}{more}, and the error budget multiplies their inputs"
        raise InputError(f"{path}: {what}; {remedy}")
