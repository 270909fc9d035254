"""Deviations of cells from a law: a mean and a spread by the cell's place, and a standardised draw of the cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from memsim import rng
from memsim.device.levels import compiled
from memsim.device.levels.laws import INTERVALS, Floats, Surface, Table, population_values, shape_tables
from memsim.device.levels.schema import Shape
from memsim.portable.draws import standard_normals
from memsim.portable.kernels import is_compiled

Law = Callable[[Floats], Floats]
"""A law as a function of conductances in microsiemens."""


@dataclass(frozen=True)
class Places:
    """The places at which laws are tabulated: the digits of cells, or their conductances.

    Attributes:
        microsiemens: [points], the conductances at the points of a table.
        last: the place of the last point; that of the first is 0.
    """

    microsiemens: Floats
    last: float

    @classmethod
    def of_digits(cls, targets: Floats) -> Places:
        """Return the places of digits with `targets` [levels] in microsiemens."""
        return cls(targets, float(len(targets) - 1))

    @classmethod
    def of_conductances(cls, top: float) -> Places:
        """Return the places of conductances from 0 to `top` microsiemens."""
        return cls(np.linspace(0.0, top, INTERVALS + 1), top)

    def table(self, values: Floats) -> Table:
        """Return the table of `values` [points]."""
        return Table.of(values, 0.0, self.last)


@dataclass(frozen=True, eq=False)
class Deviation:
    """The deviation mean + spread z of a cell at a place, tabulated over the places.

    z is `transform` of a normal score (and of the place), times `factor` of a second one. With `tail_score`, cells
    whose second score is at least that have the spread `tail_spread`.
    """

    mean: Table
    spread: Table
    transform: Table | Surface | None = None
    factor: Table | None = None
    tail_score: Table | None = None
    tail_spread: Table | None = None

    @classmethod
    def of(
        cls, places: Places, mean: Law, spread: Law, shape: Shape, largest: float, seconds: float = 1.0
    ) -> Deviation:
        """Tabulate the laws at a time; `largest` is the conductance that relative ones are relative to."""
        at = places.microsiemens
        spreads = np.maximum(spread(at), 0.0)
        own = cls(places.table(mean(at)), places.table(spreads), *shape_tables(shape))
        if not isinstance(shape, str) and shape.quantile_grid is not None:
            return replace(own, transform=Surface.of(shape.quantile_grid, at, places.last, seconds))
        if isinstance(shape, str) or shape.two_populations is None:
            return own
        scores, core, tail = population_values(shape.two_populations, at, largest)
        tables = (places.table(scores), places.table(spreads * tail))
        return replace(own, spread=places.table(spreads * core), tail_score=tables[0], tail_spread=tables[1])

    def __call__(self, place: Tensor, score: Tensor, second: Tensor) -> Tensor:
        """Return the deviations [n] of cells at `place` [n], float32, with their normal scores [n]."""
        if not is_compiled(place) or isinstance(self.transform, Surface):
            return self.by_definition(place, score, second)
        return compiled.deviations(self._arguments, place, score, second)

    def by_definition(self, place: Tensor, score: Tensor, second: Tensor) -> Tensor:
        """Return what a call does, in torch operations for any device."""
        spread = self.spread(place)
        if self.tail_score is not None and self.tail_spread is not None:
            spread = torch.where(second >= self.tail_score(place), self.tail_spread(place), spread)
        z = score
        if self.transform is not None:
            z = self.transform(place, score) if isinstance(self.transform, Surface) else self.transform(score)
        if self.factor is not None:
            z = z * self.factor(second)
        return z * spread + self.mean(place)

    @cached_property
    def _arguments(self) -> compiled.DeviationArguments:
        tables = (getattr(self, field.name) for field in fields(self))
        return compiled.DeviationArguments(*((table or _ABSENT).arguments() for table in tables))

    def to(self, device: torch.device) -> Deviation:
        """Return the same law on `device`."""
        own = (getattr(self, field.name) for field in fields(self))
        return Deviation(*(None if table is None else table.to(device) for table in own))  # type: ignore[arg-type]


_ABSENT = Table(torch.empty(0), 0.0, 1.0)

LOG_TIME_SPAN = 64.0
"""The largest ln(1 + t / path_seconds) of a path; 10^12 s after a path of 10^-12 s began it is 55."""

_HALVINGS = 13  # the finest steps of a path are 0.008 in the logarithm of time


@dataclass(frozen=True)
class Path:
    """The normal score of each cell at one time: a sum of normals, each drawn with a key and weighted."""

    terms: tuple[tuple[int, float], ...]

    @classmethod
    def frozen(cls, key: int) -> Path:
        """Return a score that is the same at all times."""
        return cls(((key, 1.0),))

    @classmethod
    def redrawn(cls, key: int, seconds: float) -> Path:
        """Return a score that is independent of those of other times."""
        return cls(((rng.derive_seed(key, "at", repr(seconds)), 1.0),))

    @classmethod
    def increments(cls, key: int, log_time: float) -> Path:
        """Return W(u) / sqrt(u) of a Brownian path W over the logarithm of time u, whose increments are independent.

        The path is Lévy's: a straight line to its end, and normal displacements of the middles of ever finer halves, so
        that any two times see the same path.
        """
        u, span = min(max(log_time, 0.0), LOG_TIME_SPAN), LOG_TIME_SPAN
        if u == 0:
            return cls.frozen(rng.derive_seed(key, "end"))
        terms = [(rng.derive_seed(key, "end"), u / math.sqrt(span))]
        width = span
        for halving in range(_HALVINGS):
            index = min(int(u / width), (1 << halving) - 1)
            height = 1.0 - abs(2 * (u - index * width) / width - 1.0)  # of the tent over this interval
            if height > 0:
                terms.append((rng.derive_seed(key, "middle", halving, index), height * math.sqrt(width) / 2))
            width /= 2
        size = math.sqrt(sum(weight**2 for _, weight in terms))
        return cls(tuple((own, weight / size) for own, weight in terms))

    def scores(self, cells: Tensor) -> Tensor:
        """Return the scores [n], float32, of `cells` [n] (int64)."""
        (key, weight), *others = self.terms
        total = standard_normals(key, cells)[0] * weight
        for key, weight in others:
            total = standard_normals(key, cells)[0] * weight + total
        return total
