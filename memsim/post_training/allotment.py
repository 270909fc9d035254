"""The choice of bits and copies for each layer under a budget, and the record of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from memsim.post_training.recipe import AllotConfig
from memsim.units import counted

_MOST_STEPS = 1 << 15
"""The most steps in which a budget is counted. Costs that are no whole steps are rounded up, so that it is kept."""


@dataclass(frozen=True)
class LayerAllotment:
    """The bits and copies of one layer.

    Attributes:
        bits: the bits of its weights; None for a layer that stays digital.
        copies: the cells that hold the same bits.
        rise: the predicted rise of the network's loss; where the loss is not known, the square of the relative error of
            the layer's product. None for a layer whose bits were given, or whose inputs are not known.
    """

    bits: int | None
    copies: int = 1
    rise: float | None = None


@dataclass(frozen=True)
class Allotment:
    """The bits, copies and digital layers that a recipe chose, and what they take of the budget.

    Attributes:
        config: the recipe's keys.
        spent: the mean that `config.at_most` bounds.
        is_of_loss: whether rises are those of the network's loss.
        layers: the choice for each layer, by name.
    """

    config: AllotConfig
    spent: float
    is_of_loss: bool
    layers: Mapping[str, LayerAllotment]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"config": self.config.model_dump(mode="json")}

    def __str__(self) -> str:
        """A phrase such as `allotted 3 bits to 12 layers and 4 to 28: 5.41 of at most 5.5 cells per weight`."""
        counts = Counter((layer.bits, layer.copies) for layer in self.layers.values() if layer.bits is not None)
        shares = []
        for (bits, copies), count in sorted(counts.items()):
            each = f" in {copies} copies" if copies > 1 else ""
            shares.append(f"{counted(bits, 'bit')}{each} to {counted(count, 'layer')}")
        if digital := sum(layer.bits is None for layer in self.layers.values()):
            shares.append(f"{counted(digital, 'layer')} kept digital")
        unit = self.config.budget.replace("_", " ")
        return f"allotted {', '.join(shares)}: {self.spent:.4g} of at most {self.config.at_most:g} {unit}"


def cheapest_rise(costs: Sequence[Sequence[int]], rises: Sequence[Sequence[float]], budget: int) -> list[int] | None:
    """Return the setting of each layer whose rises have the least sum among those whose costs are within `budget`.

    It is found by dynamic programming over the cost spent so far, for rises and costs of any form. Among equal sums it
    is the one of least cost. Returns None where even the cheapest settings cost more. Budgets of more than
    2^15 steps of the costs' greatest common divisor are counted in 2^15 steps, into which each cost is rounded up.

    Args:
        costs: those of each layer's settings, 0 or more.
        rises: those of the same settings, finite and 0 or more.
        budget: the largest sum of costs.
    """
    if sum(map(min, costs)) > budget:
        return None
    if not costs:
        return []
    unit = int(np.gcd.reduce([cost for layer in costs for cost in layer])) or 1
    # each layer starts from its least cost, so that rounding can never leave the cheapest settings out
    least = [min(layer) for layer in costs]
    left = budget - sum(least)
    steps = min(left // unit, _MOST_STEPS)
    extra = [
        [_in_steps(cost - first, left, steps, unit) for cost in layer]
        for layer, first in zip(costs, least, strict=True)
    ]
    best = np.full(steps + 1, np.inf)
    best[0] = 0.0
    chosen = np.zeros((len(costs), steps + 1), np.int32)
    for number, (own, rise) in enumerate(zip(extra, rises, strict=True)):
        reached = np.full_like(best, np.inf)
        for setting, (cost, value) in enumerate(zip(own, rise, strict=True)):
            if cost <= steps:
                sums = best[: steps + 1 - cost] + value
                is_better = sums < reached[cost:]
                reached[cost:][is_better] = sums[is_better]
                chosen[number, cost:][is_better] = setting
        best = reached
    at, found = int(best.argmin()), []
    for number in reversed(range(len(costs))):
        found.append(int(chosen[number, at]))
        at -= extra[number][found[-1]]
    return found[::-1]


def _in_steps(cost: int, left: int, steps: int, unit: int) -> int:
    """Return the number of steps that `cost` takes, of which `left` is `steps`: exact where steps are `unit`."""
    if steps == left // unit:
        return cost // unit
    return -(-cost * steps // left)
