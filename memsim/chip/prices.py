"""Prices with ranges and sources, and the rule by which they are scaled from one technology node to another.

Scaling is that of constant-field theory with the supply voltages of real nodes: the energy of a digital operation is
proportional to F V^2 (capacitance times the square of the supply voltage) and its area to F^2, with the node F
(J. M. Rabaey, A. Chandrakasan and B. Nikolic, Digital Integrated Circuits, 2nd edition, 2003, section 3.5). Only prices
that name the node of their source are scaled; converters, cells and links do not follow the rule and name none.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated, Literal

from pydantic import Field, model_validator

from memsim.config.schema import Section, Within, problem

Level = Literal["low", "nominal", "high"]
LEVELS: tuple[Level, ...] = ("low", "nominal", "high")

Node = Annotated[float, Within(3, 180)]
Amount = Annotated[float, Within(low=0)]

_SUPPLY_VOLTS = {3: 0.65, 5: 0.68, 7: 0.70, 10: 0.75, 14: 0.80, 22: 0.85, 28: 0.90, 32: 0.95, 45: 1.0, 65: 1.1,
                 90: 1.2, 130: 1.3, 180: 1.8}  # fmt: skip


def supply_volts(node_nanometres: float) -> float:
    """Return the usual supply voltage of a node of 3 to 180 nm, interpolated between known nodes."""
    nodes = list(_SUPPLY_VOLTS)
    above = min(max(bisect_left(nodes, node_nanometres), 1), len(nodes) - 1)
    low, high = nodes[above - 1], nodes[above]
    share = (node_nanometres - low) / (high - low)
    return (1 - share) * _SUPPLY_VOLTS[low] + share * _SUPPLY_VOLTS[high]


def energy_factor(old_nanometres: float, new_nanometres: float) -> float:
    """Return the factor on the energy of a digital operation from one node to another: F V^2."""
    old, new = ((node, supply_volts(node)) for node in (old_nanometres, new_nanometres))
    return new[0] * new[1] ** 2 / (old[0] * old[1] ** 2)


class Price(Section):
    """A price with its range and source; a key that holds one names its unit.

    A price with `node_nanometres`, the node of its source, is scaled to the node of the chip.
    """

    low: Amount
    nominal: Amount
    high: Amount
    source: Annotated[str, Field(min_length=1)]
    node_nanometres: Node | None = None

    @model_validator(mode="after")
    def _is_ordered(self) -> Price:
        if not self.low <= self.nominal <= self.high:
            raise problem(f"{self.nominal:g} is not within low ({self.low:g}) and high ({self.high:g})", key="nominal")
        return self

    def at(self, level: Level, node_nanometres: float) -> float:
        """Return the price at the `level` of its range on a chip of that node."""
        value: float = getattr(self, level)
        return value if self.node_nanometres is None else value * self._factor(self.node_nanometres, node_nanometres)

    @staticmethod
    def _factor(old_nanometres: float, new_nanometres: float) -> float:
        return energy_factor(old_nanometres, new_nanometres)


class AreaPrice(Price):
    """The price of a circuit in area."""

    @staticmethod
    def _factor(old_nanometres: float, new_nanometres: float) -> float:
        return (new_nanometres / old_nanometres) ** 2
