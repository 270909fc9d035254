"""Laws of how a conductance changes with time: location, scale and tails by conductance and log time.

A law gives the change x of a conductance since a start (since programming, or since the first reading) as

    x = m(g, u) + b(g, u) z,    u = ln(t / t1), at least 0,

where g is the conductance at the start, m and b are linear between knots of g and constant beyond them, t1 is the first
time that was measured, and z is a standard variable with two scales, exp(-s) below and exp(s) above 0 (a two-piece
law: Fernandez & Steel, J. Am. Stat. Assoc. 93:359, 1998). A relative law is one of ln g: a Gaussian one whose m and b
are proportional to u is the power law of drift with its own exponent for each cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import stdtr
from torch import Tensor

from memsim.fit.arrays import Floats

Location = Literal["constant", "log"]
Scale = Literal["constant", "log", "sqrt"]
Tail = Literal["gaussian", "laplace", "student", "two_laplaces", "gaussian_laplace"]
_WORDS: Mapping[Tail, str] = {
    "gaussian": "Gaussian",
    "laplace": "Laplace",
    "student": "Student",
    "two_laplaces": "two-Laplace",
    "gaussian_laplace": "Gaussian-and-Laplace",
}
LEAST_FREEDOM = 2.2
"""The least degrees of freedom of Student's law, whose variance is infinite at 2."""
_BISECTIONS = 60
_ROUNDING = 0.01


@dataclass(frozen=True)
class Form:
    """The kind of a law, without its numbers.

    Attributes:
        relative: whether it is a law of ln g instead of g.
        location: m is constant after t1, or linear in u (`log`).
        scale: b is constant after t1, linear in u (`log`; of ln g, noise and a drift add up as squares), or b^2 is
            (`sqrt`: independent increments).
        tail: the law of |z|; of `two_laplaces` one is wider, with a share of the cells whose logit is linear in u
            (cells that have moved, beside cells that stay), and of `gaussian_laplace` the cells that stay are Gaussian.
        skewed: whether s differs from 0.
    """

    relative: bool = False
    location: Location = "constant"
    scale: Scale = "constant"
    tail: Tail = "laplace"
    skewed: bool = False

    @property
    def has_moved(self) -> bool:
        """Whether a share of the cells has moved."""
        return self.tail in ("two_laplaces", "gaussian_laplace")

    @property
    def parts(self) -> tuple[str, ...]:
        """The quantities that are given by knot."""
        named = {
            "m0": True,
            "m1": self.location == "log",
            "b0": True,
            "b1": self.scale != "constant",
            "skew": self.skewed,
            "share0": self.has_moved,
            "share1": self.has_moved,
        }
        return tuple(name for name, present in named.items() if present)

    @property
    def scalars(self) -> tuple[str, ...]:
        """The quantities that do not depend on conductance."""
        return ("factor",) if self.has_moved else ("freedom",) if self.tail == "student" else ()

    def size(self, knots: int) -> int:
        """Return the number of parameters."""
        return knots * len(self.parts) + len(self.scalars)

    @property
    def words(self) -> str:
        """The tails, such as `skewed Laplace`."""
        return f"{'skewed ' if self.skewed else ''}{_WORDS[self.tail]}"

    def __str__(self) -> str:
        over = {"constant": "constant in time", "log": "linear in ln t", "sqrt": "square linear in ln t"}
        times = f"mean {over[self.location]}, spread {over[self.scale]}"
        return f"{self.words} in {'ln g' if self.relative else 'g'}; {times}"


@dataclass(frozen=True, eq=False)
class Law:
    """A law and its numbers. Conductances are in µS, times in seconds.

    Attributes:
        form: its kind.
        knots: conductances at the start [K], rising.
        by_knot: `m0`, `m1`, `b0`, `b1` (of µS, or of ln g), `skew`, `share0`, `share1` (the logit of the share): [K]
            each; those in 1 are a unit of u.
        scalars: `freedom` of Student's law; `factor` by which cells that have moved are wider.
        first_seconds: t1; before it nothing is known, and the law is that at t1.
    """

    form: Form
    knots: Tensor
    by_knot: Mapping[str, Tensor]
    scalars: Mapping[str, Tensor]
    first_seconds: float

    def wider(self, factor: float) -> Law:
        """Return the law with its spread times `factor`."""
        spreads = {name: factor * values for name, values in self.by_knot.items() if name in ("b0", "b1")}
        return replace(self, by_knot={**self.by_knot, **spreads})

    def _standardised(self, start: Tensor, seconds: Tensor, now: Tensor) -> tuple[Tensor, Tensor, Tensor, _Shape]:
        """Return (z, b, Jacobian of x to µS, shape of z) of conductances `now`, all [n]."""
        shape = self._at(start, seconds)
        x = torch.log(now / start) if self.form.relative else now - start
        return (x - shape.m) / shape.b, shape.b, now if self.form.relative else torch.ones_like(now), shape

    def log_density(self, start: Tensor, seconds: Tensor, now: Tensor) -> Tensor:
        """Return the log density a µS of conductances `now` at `seconds`, for conductances `start`; all [n]."""
        z, b, jacobian, shape = self._standardised(start, seconds, now)
        y = z * torch.exp(torch.where(z < 0, shape.skew, -shape.skew))
        return self._log_tail(y, shape) - torch.log(torch.cosh(shape.skew)) - torch.log(b) - torch.log(jacobian)

    def cdf(self, start: Tensor, seconds: Tensor, now: Tensor) -> Floats:
        """Return the probability of a conductance below `now`; all [n]."""
        z, _, _, shape = self._standardised(start, seconds, now)
        below = 1 / (1 + torch.exp(2 * shape.skew))
        left = 2 * below * self._tail_cdf(z * torch.exp(shape.skew), shape)
        right = 1 - 2 * (1 - below) * self._tail_cdf(-z * torch.exp(-shape.skew), shape)
        return np.asarray(torch.where(z < 0, left, right))

    def quantile(self, start: Tensor, seconds: Tensor, probability: float) -> Floats:
        """Return the conductances at `probability`, [n], in µS, by bisection."""
        shape = self._at(start, seconds)
        low, high = torch.full_like(start, -1.0), torch.full_like(start, 1.0)
        for edge in (low, high):  # a bracket in z
            while (beyond := self._beyond(start, seconds, edge, shape, probability)).any():
                edge[beyond] *= 4.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            is_below = torch.from_numpy(self.cdf(start, seconds, self._now(start, middle, shape)) < probability)
            low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
        return np.asarray(self._now(start, (low + high) / 2, shape))

    def _beyond(self, start: Tensor, seconds: Tensor, z: Tensor, shape: _Shape, probability: float) -> Tensor:
        reached = self.cdf(start, seconds, self._now(start, z, shape))
        return torch.from_numpy(np.where(z < 0, reached > probability, reached < probability))

    def _now(self, start: Tensor, z: Tensor, shape: _Shape) -> Tensor:
        x = shape.m + shape.b * z
        return start * torch.exp(x) if self.form.relative else start + x

    def draw(self, start: Tensor, seconds: Tensor, generator: np.random.Generator) -> Tensor:
        """Return conductances at `seconds` drawn for conductances `start`, all [n], in µS."""
        shape, size = self._at(start, seconds), len(start)
        uniform = torch.from_numpy(generator.random(size))
        if self.form.tail == "gaussian":
            y = torch.from_numpy(generator.standard_normal(size)).abs()
        elif self.form.tail == "student":
            y = torch.from_numpy(generator.standard_t(float(self.scalars["freedom"]), size)).abs()
        else:
            y = wide = torch.from_numpy(generator.exponential(size=size))
            if self.form.tail == "gaussian_laplace":
                y = torch.from_numpy(generator.standard_normal(size)).abs()
            if shape.share is not None:
                moved = torch.from_numpy(generator.random(size)) < shape.share
                y = torch.where(moved, wide * self.scalars["factor"], y)
        is_below = uniform < 1 / (1 + torch.exp(2 * shape.skew))
        return self._now(start, torch.where(is_below, -y * torch.exp(-shape.skew), y * torch.exp(shape.skew)), shape)

    def moments(self, start: Tensor, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation of the change of conductances `start`, [n] each, in µS."""
        shape = self._at(start, seconds)
        if self.form.relative:  # log-normal
            variance = shape.b**2
            mean = start * torch.exp(shape.m + variance / 2)
            return mean - start, mean * torch.sqrt(torch.expm1(variance))
        first, second = self._absolute_moments()
        if shape.share is not None:
            factor = self.scalars["factor"]
            first = first * (1 - shape.share) + shape.share * factor
            second = second * (1 - shape.share) + shape.share * 2 * factor**2
        mean = 2 * first * torch.sinh(shape.skew)
        variance = second * (2 * torch.cosh(2 * shape.skew) - 1) - mean**2
        return shape.m + shape.b * mean, shape.b * torch.sqrt(variance)

    def _absolute_moments(self) -> tuple[Any, Any]:
        """Return the mean and mean square of |z| without skew and wide cells."""
        if self.form.tail in ("gaussian", "gaussian_laplace"):
            return math.sqrt(2 / math.pi), 1.0
        if self.form.tail == "student":
            n = float(self.scalars["freedom"])
            log_ratio = math.lgamma((n + 1) / 2) - math.lgamma(n / 2)
            return 2 * math.sqrt(n / math.pi) / (n - 1) * math.exp(log_ratio), n / (n - 2)
        return 1.0, 2.0

    def share(self, seconds: Tensor) -> Tensor:
        """Return the share of cells that have moved [times, K] at the knots."""
        u = torch.log(seconds.clamp(min=self.first_seconds) / self.first_seconds)
        return torch.sigmoid(self.by_knot["share0"] + self.by_knot["share1"] * u[:, None])

    def _at(self, start: Tensor, seconds: Tensor) -> _Shape:
        hats = hat_weights(start, self.knots)
        u = torch.log(seconds.clamp(min=self.first_seconds) / self.first_seconds)
        of = {name: hats @ values for name, values in self.by_knot.items()}
        m = of["m0"] + of["m1"] * u if "m1" in of else of["m0"]
        b = of["b0"]
        if self.form.scale == "log":
            b = torch.hypot(b, of["b1"] * u) if self.form.relative else b + of["b1"] * u
        elif self.form.scale == "sqrt":
            b = torch.sqrt(b**2 + of["b1"] ** 2 * u)
        share = torch.sigmoid(of["share0"] + of["share1"] * u) if "share0" in of else None
        return _Shape(m, b, of.get("skew", torch.zeros_like(m)), share)

    def _log_tail(self, y: Tensor, shape: _Shape) -> Tensor:
        """Return the log density of the symmetric standard variable at `y`."""
        if self.form.tail == "gaussian":
            return -0.5 * y**2 - 0.5 * math.log(2 * math.pi)
        if self.form.tail == "student":
            n = self.scalars["freedom"]
            constant = torch.lgamma((n + 1) / 2) - torch.lgamma(n / 2) - 0.5 * torch.log(n * math.pi)
            return constant - (n + 1) / 2 * torch.log1p(y**2 / n)
        narrow = -0.5 * y**2 - 0.5 * math.log(2 * math.pi)
        y = torch.sqrt(y**2 + _ROUNDING**2)  # a kink would stop the search for the most likely law
        if self.form.tail != "gaussian_laplace":
            narrow = -y - math.log(2)
        if shape.share is None:
            return narrow
        factor = self.scalars["factor"]
        wide = -y / factor - torch.log(2 * factor)
        return torch.logaddexp(narrow + torch.log1p(-shape.share), wide + torch.log(shape.share))

    def _tail_cdf(self, y: Tensor, shape: _Shape) -> Tensor:
        """Return the probability that the symmetric standard variable is below `y`, at most 0."""
        y = y.clamp(max=0.0)
        if self.form.tail == "gaussian":
            below: Tensor = torch.special.ndtr(y)
            return below
        if self.form.tail == "student":
            return torch.from_numpy(np.asarray(stdtr(float(self.scalars["freedom"]), y.numpy())))
        narrow = torch.special.ndtr(y) if self.form.tail == "gaussian_laplace" else torch.exp(y) / 2
        if shape.share is None:
            return narrow
        return (1 - shape.share) * narrow + shape.share * torch.exp(y / self.scalars["factor"]) / 2

    def to_dict(self) -> dict[str, Any]:
        """Return the law as plain values."""
        return {
            "relative": self.form.relative,
            "location": self.form.location,
            "scale": self.form.scale,
            "tail": self.form.tail,
            "first_seconds": self.first_seconds,
            "knots_microsiemens": self.knots.tolist(),
            **{name: values.tolist() for name, values in self.by_knot.items()},
            **{name: float(value) for name, value in self.scalars.items()},
        }


@dataclass(frozen=True)
class _Shape:
    """A law at given conductances and times, [n] each."""

    m: Tensor
    b: Tensor
    skew: Tensor
    share: Tensor | None


def hat_weights(x: Tensor, knots: Tensor) -> Tensor:
    """Return the weights [n, K] with which values at `knots` [K] are interpolated linearly at `x` [n]."""
    if len(knots) == 1:
        return torch.ones(len(x), 1, dtype=knots.dtype)
    x = x.clamp(float(knots[0]), float(knots[-1]))
    left = torch.searchsorted(knots, x, right=True).clamp(1, len(knots) - 1) - 1
    right_weight = (x - knots[left]) / (knots[left + 1] - knots[left])
    weights = torch.zeros(len(x), len(knots), dtype=knots.dtype)
    rows = torch.arange(len(x))
    weights[rows, left] = 1 - right_weight
    weights[rows, left + 1] = right_weight
    return weights
