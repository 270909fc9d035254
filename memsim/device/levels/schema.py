"""The sections of a device file of kind `levels` (configs/devices/README.md describes each key).

Conductances are in microsiemens, times in seconds after programming, and logarithms are natural where no base is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic.types import Strict

from memsim.config.schema import Section, Within, problem

Numbers = Annotated[tuple[float, ...], Strict(False), Field(min_length=1)]
Argument = Literal["microsiemens", "relative", "ln_relative", "log10_microsiemens", "log10_siemens"]


class Table(Section):
    """Values at rising arguments, with straight lines in between, and held beyond both ends."""

    at: Numbers
    values: Numbers

    @model_validator(mode="after")
    def _rises(self) -> Table:
        _require_rising(self.at, "at")
        _require_as_many(self.values, self.at, "values", "at")
        return self


class Formula(Section):
    """A function of the conductance: exactly one of its forms, with the smallest and largest values that it takes.

    `argument` is what the form takes: the conductance, or its ratio to the largest target (`relative`).
    """

    argument: Argument = "microsiemens"
    polynomial: Numbers | None = None  # ascending powers
    power: Numbers | None = None  # [factor, exponent]
    saturating: Numbers | None = None  # [end, constant]: end (1 - exp(-argument / constant))
    table: Table | None = None
    low: float = -math.inf
    high: float = math.inf

    @model_validator(mode="after")
    def _has_one_form(self) -> Formula:
        _require_one(self, self._forms())
        for key in ("power", "saturating"):
            if (numbers := getattr(self, key)) is not None and len(numbers) != 2:
                raise problem(f"holds {len(numbers)} numbers; it must hold two", key=key)
        if self.saturating is not None and self.saturating[1] == 0:
            raise problem("its second number is 0; it must not be", key="saturating")
        if self.low > self.high:
            raise problem(f"{self.low} is above high ({self.high})", key="low")
        return self

    def _forms(self) -> tuple[str, ...]:
        return ("polynomial", "power", "saturating", "table")


class Piece(Formula):
    """A formula that holds for arguments `below` a number, which the pieces before it leave; the last has none."""

    below: float | None = None


class LawSection(Formula):
    """A law by conductance: a formula, or pieces of which the first that reaches to the law's `argument` holds.

    The form of a piece takes the argument of its own.
    """

    pieces: Annotated[tuple[Piece, ...], Strict(False), Field(min_length=2)] | None = None

    @model_validator(mode="after")
    def _pieces_meet(self) -> LawSection:
        if self.pieces is not None:
            ends = [piece.below for piece in self.pieces[:-1]]
            if None in ends or self.pieces[-1].below is not None:
                raise problem("every piece but the last needs below, and the last has none", key="pieces")
            _require_rising([end for end in ends if end is not None], "pieces")
        return self

    def _forms(self) -> tuple[str, ...]:
        return (*super()._forms(), "pieces")


_WORD_OR_SECTION = Discriminator(lambda value: "section" if isinstance(value, Mapping | Section) else "word")

Law = Annotated[Annotated[float, Tag("word")] | Annotated[LawSection, Tag("section")], _WORD_OR_SECTION]
"""A number for all conductances, or a function of them."""


class Grid(Section):
    """Values at rising conductances and times: `values` has a row for each of `seconds`.

    Lines are straight in the conductance and in the logarithm of time. Values are held beyond both conductances.
    """

    microsiemens: Numbers
    seconds: Numbers
    values: Annotated[tuple[Numbers, ...], Strict(False)]

    @model_validator(mode="after")
    def _is_whole(self) -> Grid:
        _require_rising(self.microsiemens, "microsiemens")
        _require_rising(self.seconds, "seconds", above=0)
        _require_as_many(self.values, self.seconds, "values", "seconds")
        for row in self.values:
            _require_as_many(row, self.microsiemens, "values", "microsiemens")
        return self


class TimeLawSection(LawSection):
    """A law by conductance and time: one that holds at all times, or one of the forms with time.

    `beyond` says what holds after the last time of a table: its values, or the line through its last two times.
    """

    grid: Grid | None = None
    at_seconds: Numbers | None = None
    laws: Annotated[tuple[Law, ...], Strict(False)] | None = None  # one for each of at_seconds
    start: Law | None = None  # at unit_seconds
    per_ln_second: Law | None = None
    unit_seconds: Annotated[float, Within(above=0)] = 1.0
    beyond: Literal["hold", "extrapolate"] = "hold"

    @model_validator(mode="after")
    def _times_are_whole(self) -> TimeLawSection:
        if self.at_seconds is not None:
            _require_rising(self.at_seconds, "at_seconds", above=0)
            _require_as_many(self.laws or (), self.at_seconds, "laws", "at_seconds")
        elif self.laws is not None:
            raise problem("goes with at_seconds, which is missing", key="laws")
        if (self.start is None) != (self.per_ln_second is None):
            raise problem("start and per_ln_second go together; one is missing", key="start")
        return self

    def _forms(self) -> tuple[str, ...]:
        return (*super()._forms(), "grid", "at_seconds", "start")


TimeLaw = Annotated[Annotated[float, Tag("word")] | Annotated[TimeLawSection, Tag("section")], _WORD_OR_SECTION]
"""A number for all conductances and times, or a function of them."""


class TwoPopulations(Section):
    """The share of cells whose deviations are `tail_factor` times as large as those of the others."""

    tail_share: Law
    tail_factor: Law


class Quantiles(Section):
    """The quantile function of a deviation at rising probabilities, straight in the normal score, extrapolated."""

    probabilities: Numbers
    values: Numbers

    @model_validator(mode="after")
    def _rises(self) -> Quantiles:
        _require_rising(self.probabilities, "probabilities", above=0, below=1)
        _require_as_many(self.values, self.probabilities, "values", "probabilities")
        if len(self.values) < 2 or any(b < a for a, b in pairwise(self.values)):
            raise problem("must hold at least two numbers that do not fall", key="values")
        return self


class QuantileGrid(Section):
    """Quantiles of a deviation by conductance and time: `values` has a list of rows for each of `seconds`.

    A row holds the quantiles at `probabilities` for one of `microsiemens`. Lines are straight in the normal score, and
    go on beyond both ends; they are straight in the conductance and the logarithm of time, and held beyond those.
    """

    probabilities: Numbers
    microsiemens: Numbers
    seconds: Numbers
    values: Annotated[tuple[Annotated[tuple[Numbers, ...], Strict(False)], ...], Strict(False)]

    @model_validator(mode="after")
    def _is_whole(self) -> QuantileGrid:
        _require_rising(self.probabilities, "probabilities", above=0, below=1)
        _require_rising(self.microsiemens, "microsiemens")
        _require_rising(self.seconds, "seconds", above=0)
        if len(self.probabilities) < 2:
            raise problem("must hold at least two numbers", key="probabilities")
        _require_as_many(self.values, self.seconds, "values", "seconds")
        for rows in self.values:
            _require_as_many(rows, self.microsiemens, "values", "microsiemens")
            for row in rows:
                _require_as_many(row, self.probabilities, "values", "probabilities")
                if any(b < a for a, b in pairwise(row)):
                    raise problem("must hold numbers that do not fall from quantile to quantile", key="values")
        return self


class ShapeSection(Section):
    """The distribution of a standardised deviation, one of them."""

    student: Annotated[float, Within(above=2, high=1000)] | None = None  # degrees of freedom
    two_populations: TwoPopulations | None = None
    quantiles: Quantiles | None = None
    quantile_grid: QuantileGrid | None = None

    @model_validator(mode="after")
    def _is_one(self) -> ShapeSection:
        _require_one(self, ("student", "two_populations", "quantiles", "quantile_grid"))
        return self


Shape = Annotated[
    Annotated[Literal["normal", "laplace"], Tag("word")] | Annotated[ShapeSection, Tag("section")], _WORD_OR_SECTION
]
"""The distribution of a deviation with mean 0 and standard deviation 1 (of quantiles: as they stand)."""

By = Literal["target", "programmed"]


class Limits(Section):
    """The conductances of the first and of the last digit."""

    low: Annotated[float, Within(low=0)] = 0.0
    high: Annotated[float, Within(above=0)]

    @model_validator(mode="after")
    def _rises(self) -> Limits:
        if self.low >= self.high:
            raise problem(f"{self.low} is not below high ({self.high})", key="low")
        return self


class HigherPowers(Section):
    """The current of cells that are not ohmic: I = G U + N2 U^2 + N3 U^3 + ..., in amperes and volts."""

    higher_powers_amperes: Annotated[tuple[Law, ...], Strict(False), Field(min_length=1)]  # N2, N3, ...
    highest_volts: Annotated[float, Within(above=0)]  # to which the law was measured


Current = Annotated[
    Annotated[Literal["ohmic"], Tag("word")] | Annotated[HigherPowers, Tag("section")], _WORD_OR_SECTION
]


class ProgrammingError(Section):
    """The deviation from the target right after programming, in microsiemens, by the target."""

    mean: Law = 0.0
    spread: Law = 0.0
    shape: Shape = "normal"


class Drift(Section):
    """The power law g (1 + t / reference_seconds)^-nu; a cell's exponent nu is the magnitude of a normal variate."""

    exponent_mean: Law
    exponent_spread: Law = 0.0
    reference_seconds: Annotated[float, Within(above=0)]
    by: By = "target"


class Relaxation(Section):
    """The change of a conductance since programming, in microsiemens: a mean, and a spread with its path over time."""

    mean: TimeLaw = 0.0
    spread: TimeLaw = 0.0
    shape: Shape = "normal"
    path: Literal["increments", "frozen", "redrawn"] = "increments"
    path_seconds: Annotated[float, Within(above=0)] = 1.0
    around: By = "programmed"  # what the change is added to
    by: By = "programmed"


class Accumulated(Section):
    """Noise that has accumulated since programming: spread sqrt(ln((t + reference + read) / (2 read)))."""

    spread: Law
    relative: bool = False  # to the conductance at the time
    reference_seconds: Annotated[float, Within(low=0)] = 0.0
    read_seconds: Annotated[float, Within(above=0)]
    by: By = "programmed"


class White(Section):
    """Noise of every read, by the conductance at the time, beside that of Johnson and shot noise."""

    spread: Law
    relative: bool = False  # to that conductance
    bandwidth_hz: Annotated[float, Within(above=0)] | None = None  # of the measurement; none: any read has the spread


class CellNoise(Section):
    """The noise of a cell's conductance, in microsiemens."""

    accumulated: Accumulated | None = None
    white: White | None = None


class LevelsFile(Section):
    """A device file of kind `levels`."""

    kind: Literal["levels"]
    name: Annotated[str, Field(min_length=1)]
    source: str
    licence: str = ""
    microsiemens: Limits
    floor_microsiemens: Annotated[float, Within(low=0)] = 0.0
    ceiling_microsiemens: Annotated[float, Within(above=0)] | None = None
    reference_volts: Annotated[float, Within(above=0, high=5)] = 0.2
    current: Current = "ohmic"
    programming: ProgrammingError | None = None
    drift: Drift | None = None
    relaxation: Relaxation | None = None
    noise: CellNoise = CellNoise()

    @model_validator(mode="after")
    def _limits_hold_targets(self) -> LevelsFile:
        if self.floor_microsiemens > self.microsiemens.low:
            raise problem(f"is above the lowest target ({self.microsiemens.low})", key="floor_microsiemens")
        if self.ceiling_microsiemens is not None and self.ceiling_microsiemens < self.microsiemens.high:
            raise problem(f"is below the highest target ({self.microsiemens.high})", key="ceiling_microsiemens")
        return self


def _require_one(section: Section, keys: Sequence[str]) -> None:
    """Raise the problem of a section that has none of `keys`, or more than one."""
    given = [key for key in keys if getattr(section, key) is not None]
    if len(given) != 1:
        raise problem(f"{' and '.join(given) or 'no form'} given; give one of {', '.join(keys)}", key=None)


def _require_rising(numbers: Sequence[float], key: str, above: float = -math.inf, below: float = math.inf) -> None:
    if any(b <= a for a, b in pairwise(numbers)):
        raise problem("must rise from number to number", key=key)
    if numbers and not (above < numbers[0] and numbers[-1] < below):
        raise problem(f"must be above {above}" + (f" and below {below}" if below < math.inf else ""), key=key)


def _require_as_many(numbers: Sequence[Any], others: Sequence[Any], key: str, other: str) -> None:
    if len(numbers) != len(others):
        raise problem(f"holds {len(numbers)}, but {other} holds {len(others)}; they must be as many", key=key)
