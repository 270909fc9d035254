"""The laws of a device file, evaluated in double precision and tabulated for drawing cells.

Cells look laws up in tables over the conductance, with straight lines in between, which have the same bits on every CPU
and GPU, whatever the formula of the law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memsim.device.levels.compiled import TableArguments
from memsim.device.levels.schema import (
    Formula,
    LawSection,
    QuantileGrid,
    Quantiles,
    Shape,
    TimeLawSection,
    TwoPopulations,
)

Floats = NDArray[np.float64]

INTERVALS = 4096
"""The intervals of a table."""

_SCORES, _SURFACE_PLACES = 512, 256
"""The intervals of a surface."""

LARGEST_NORMAL = 7.0
"""Normal scores beyond it are not drawn (see `memsim.portable`)."""

_LEAST_ARGUMENT = 1e-6  # relative to the largest target, where logarithms are taken


def law_values(law: float | LawSection, microsiemens: Floats, largest: float) -> Floats:
    """Evaluate `law` at conductances [n]; `largest` is the conductance that relative ones are relative to."""
    if isinstance(law, LawSection):
        if law.pieces is None:
            return _formula(law, microsiemens, largest)
        values, at = np.full_like(microsiemens, np.nan), _argument(law, microsiemens, largest)
        for piece in law.pieces:
            here = np.isnan(values) & (True if piece.below is None else at < piece.below)
            values[here] = _formula(piece, microsiemens[here], largest)
        return values.clip(law.low, law.high)
    return np.full_like(microsiemens, law)


def time_law_values(law: float | TimeLawSection, microsiemens: Floats, seconds: float, largest: float) -> Floats:
    """Evaluate `law` at conductances [n] and a time above 0."""
    if not isinstance(law, TimeLawSection):
        return law_values(law, microsiemens, largest)
    if law.grid is not None:
        grid = law.grid
        rows = [np.interp(microsiemens, grid.microsiemens, row) for row in grid.values]
        values = _between(rows, grid.seconds, seconds, law.beyond)
    elif law.at_seconds is not None:
        rows = [law_values(own, microsiemens, largest) for own in law.laws or ()]
        values = _between(rows, law.at_seconds, seconds, law.beyond)
    elif law.start is not None and law.per_ln_second is not None:
        slope = law_values(law.per_ln_second, microsiemens, largest)
        values = law_values(law.start, microsiemens, largest) + slope * math.log(seconds / law.unit_seconds)
    else:
        return law_values(law, microsiemens, largest)
    return values.clip(law.low, law.high)


def _between(rows: list[Floats], times: tuple[float, ...], seconds: float, beyond: str) -> Floats:
    """Return the values at a time from those at `times`, straight in its logarithm."""
    if len(times) == 1:
        return rows[0]
    last = len(times) - 2
    after = min(max(int(np.searchsorted(times, seconds)) - 1, 0), last)
    start, end = math.log(times[after]), math.log(times[after + 1])
    share = max((math.log(seconds) - start) / (end - start), 0.0)
    if beyond == "hold":
        share = min(share, 1.0)
    return rows[after] + (rows[after + 1] - rows[after]) * share


def _argument(law: Formula, microsiemens: Floats, largest: float) -> Floats:
    if law.argument == "microsiemens":
        return microsiemens
    if law.argument == "relative":
        return microsiemens / largest
    positive = np.maximum(microsiemens, _LEAST_ARGUMENT * largest)
    if law.argument == "ln_relative":
        return np.log(positive / largest)
    return np.log10(positive) - (6.0 if law.argument == "log10_siemens" else 0.0)


def _formula(law: Formula, microsiemens: Floats, largest: float) -> Floats:
    at = _argument(law, microsiemens, largest)
    if law.polynomial is not None:
        values = np.polynomial.polynomial.polyval(at, np.array(law.polynomial))
    elif law.power is not None:
        factor, exponent = law.power
        values = factor * np.maximum(at, _LEAST_ARGUMENT) ** exponent
    elif law.saturating is not None:
        end, constant = law.saturating
        values = end * -np.expm1(-at / constant)
    else:
        assert law.table is not None
        values = np.interp(at, law.table.at, law.table.values)
    clipped: Floats = np.clip(values, law.low, law.high)
    return clipped


@dataclass(frozen=True, eq=False)
class Table:
    """Values at evenly spaced points from `first` on, with straight lines in between.

    Beyond both ends the values are held, or the lines go on where `extrapolates`.
    """

    values: Tensor  # [points], float32
    first: float
    points_per_unit: float
    extrapolates: bool = False

    @classmethod
    def of(cls, values: Floats, first: float, last: float, extrapolates: bool = False) -> Table:
        """Return the table of `values` at evenly spaced points from `first` to `last`."""
        per_unit = (len(values) - 1) / (last - first)
        return cls(torch.from_numpy(values.astype(np.float32)), first, per_unit, extrapolates)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the values at `x` [n], float32."""
        at = (x - self.first) * self.points_per_unit
        if not self.extrapolates:
            at = at.clamp(0.0, float(len(self.values) - 1))
        below = at.clamp(0.0, float(len(self.values) - 2)).int()
        low, high = self.values.index_select(0, below), self.values.index_select(0, below + 1)
        return (high - low) * (at - below) + low

    def arguments(self) -> TableArguments:
        """Return the table for compiled code."""
        last = np.float32(len(self.values) - 1)
        place = np.float32(self.first), np.float32(self.points_per_unit)
        return TableArguments(self.values.numpy(), *place, last, self.extrapolates)

    def to(self, device: torch.device) -> Table:
        """Return the same table on `device`."""
        return Table(self.values.to(device), self.first, self.points_per_unit, self.extrapolates)


@dataclass(frozen=True, eq=False)
class Surface:
    """Values at evenly spaced places, held beyond both ends, and evenly spaced scores, beyond which lines go on."""

    values: Tensor  # [places, scores], float32
    points_per_place: float
    points_per_score: float

    @classmethod
    def of(cls, grid: QuantileGrid, microsiemens: Floats, last: float, seconds: float) -> Surface:
        """Return the quantiles of `grid` at a time, over places 0 to `last` with conductances [points]."""
        quantiles = _between([np.array(rows) for rows in grid.values], grid.seconds, seconds, "hold")
        scores = np.array([NormalDist().inv_cdf(probability) for probability in grid.probabilities])
        at = np.linspace(-LARGEST_NORMAL, LARGEST_NORMAL, _SCORES + 1)
        knots = np.stack([_extended(at, scores, row) for row in quantiles])  # [conductances of the grid, scores]
        count = min(len(microsiemens), _SURFACE_PLACES + 1)
        places = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(microsiemens)), microsiemens)
        values = np.stack([np.interp(places, grid.microsiemens, column) for column in knots.T], axis=1)
        return cls(torch.from_numpy(values.astype(np.float32)), (count - 1) / last, _SCORES / (2 * LARGEST_NORMAL))

    def __call__(self, place: Tensor, score: Tensor) -> Tensor:
        """Return the values [n], float32, at places and scores [n]."""
        rows, columns = self.values.shape
        row = (place * self.points_per_place).clamp(0.0, float(rows - 1))
        column = (score + LARGEST_NORMAL) * self.points_per_score
        above, left = row.clamp(max=float(rows - 2)).int(), column.clamp(0.0, float(columns - 2)).int()
        flat, at = self.values.reshape(-1), above * columns + left
        across, down = column - left, row - above
        corners = [flat.index_select(0, at + step) for step in (0, 1, columns, columns + 1)]
        upper = (corners[1] - corners[0]) * across + corners[0]
        lower = (corners[3] - corners[2]) * across + corners[2]
        return (lower - upper) * down + upper

    def to(self, device: torch.device) -> Surface:
        """Return the same surface on `device`."""
        return Surface(self.values.to(device), self.points_per_place, self.points_per_score)


def shape_tables(shape: Shape) -> tuple[Table | None, Table | None]:
    """Return the transform of a cell's normal score, and its factor by a second normal score; None for none.

    A deviation with a heavy tail is a normal one times a factor of the cell: the square root of an exponential variate
    for Laplace's distribution, of freedom / chi-square for Student's. Quantiles are a transform of the score itself.
    """
    if shape == "normal" or (not isinstance(shape, str) and (shape.two_populations or shape.quantile_grid)):
        return None, None
    if not isinstance(shape, str) and shape.quantiles is not None:
        return _quantile_table(shape.quantiles), None
    scores = np.linspace(-LARGEST_NORMAL, LARGEST_NORMAL, INTERVALS + 1)
    above = np.array([0.5 * math.erfc(score / math.sqrt(2)) for score in scores])  # the probability of a larger score
    if shape == "laplace":
        factors = np.sqrt(-np.log(above))
    else:
        assert not isinstance(shape, str)
        assert shape.student is not None
        # a larger score stands for a smaller chi-square, and so for a larger factor
        factors = np.sqrt((shape.student - 2.0) / _chi_square_quantiles(above, shape.student))
    return None, Table.of(factors, -LARGEST_NORMAL, LARGEST_NORMAL)


def _chi_square_quantiles(probabilities: Floats, freedom: float) -> Floats:
    """Return the quantiles [n] of the chi-square distribution, by bisection in the logarithm."""
    wanted, half = torch.from_numpy(probabilities), torch.tensor(freedom / 2, dtype=torch.float64)
    low, high = torch.full_like(wanted, -80.0), torch.full_like(wanted, 15.0)
    for _ in range(80):
        middle = (low + high) / 2
        is_below = torch.special.gammainc(half.expand_as(middle), middle.exp() / 2) < wanted
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    found: Floats = low.exp().numpy()
    return found


def _quantile_table(quantiles: Quantiles) -> Table:
    scores = np.array([NormalDist().inv_cdf(probability) for probability in quantiles.probabilities])
    at = np.linspace(-LARGEST_NORMAL, LARGEST_NORMAL, INTERVALS + 1)
    found = _extended(at, scores, np.array(quantiles.values))
    return Table.of(found, -LARGEST_NORMAL, LARGEST_NORMAL, extrapolates=True)


def _extended(at: Floats, scores: Floats, values: Floats) -> Floats:
    """Return the values [n] at scores `at` from those at `scores`, along straight lines that go on beyond the ends."""
    found = np.interp(at, scores, values)
    for here, end, step in ((at < scores[0], 0, 1), (at > scores[-1], -1, -1)):
        slope = (values[end + step] - values[end]) / (scores[end + step] - scores[end])
        found[here] = values[end] + slope * (at[here] - scores[end])
    return found


def population_values(
    populations: TwoPopulations, microsiemens: Floats, largest: float
) -> tuple[Floats, Floats, Floats]:
    """Return the normal score from which on a cell is of the tail, and the factors of both populations, [n] each.

    The deviations of all cells together have unit standard deviation.
    """
    share = law_values(populations.tail_share, microsiemens, largest).clip(0.0, 1.0)
    factor = law_values(populations.tail_factor, microsiemens, largest)
    core = 1.0 / np.sqrt(1.0 - share + share * factor**2)
    bounds = np.array([_upper_score(one) for one in share])
    return bounds, core, core * factor


def _upper_score(share: float) -> float:
    if share <= 0:
        return 2 * LARGEST_NORMAL
    return -2 * LARGEST_NORMAL if share >= 1 else -NormalDist().inv_cdf(share)


def dumped(section: Any) -> Any:
    """Return the keys of `section` that were given, as plain values."""
    return section.model_dump(mode="json", exclude_unset=True)
