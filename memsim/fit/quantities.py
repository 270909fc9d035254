"""Quantities and units of the columns of a table, and the conversion of values to SI units."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from memsim.errors import InputError
from memsim.fit.arrays import Floats


@dataclass(frozen=True)
class Unit:
    """The conversion of values in a unit: `factor` x + `offset`, of 10^x or the reciprocal of that where it says so."""

    factor: float = 1.0
    offset: float = 0.0
    is_log10: bool = False
    is_reciprocal: bool = False

    def convert(self, values: Floats) -> Floats:
        """Convert `values` to the SI unit of their dimension; a conductance of 0 is an infinite resistance."""
        if self.is_log10:
            with np.errstate(over="ignore"):
                return np.power(10.0, values)
        if self.factor != 1.0 or self.offset:
            values = values * self.factor + self.offset
        if not self.is_reciprocal:
            return values
        with np.errstate(divide="ignore"):
            return np.abs(1.0 / values) * np.where(values < 0, -1.0, 1.0)

    @property
    def description(self) -> str | float:
        """The conversion as text, or as its factor where it has nothing else."""
        if self.is_log10:
            return "10 ** value"
        if self.is_reciprocal:
            return f"1 / ({self.factor:g} * value)" if self.factor != 1.0 else "1 / value"
        return f"{self.factor:g} * value + {self.offset:g}" if self.offset else self.factor


Dimension = Mapping[str, Unit]
"""The units of a dimension by name, with the SI unit first."""


def _scaled(names: Mapping[float, Iterable[str]], *, is_reciprocal: bool = False) -> dict[str, Unit]:
    return {name: Unit(factor, is_reciprocal=is_reciprocal) for factor, group in names.items() for name in group}


_OHM_NAMES = {
    1.0: ("ohm", "ohms", "Ohm", "Ohms", "Ω", "Ω"),
    1e3: ("kohm", "kohms", "kOhm", "kΩ", "kΩ"),
    1e6: ("Mohm", "Mohms", "MOhm", "MΩ", "MΩ"),
    1e9: ("Gohm", "Gohms", "GOhm", "GΩ", "GΩ"),
}
_SIEMENS_NAMES = {
    1.0: ("S", "siemens"),
    1e-3: ("mS", "millisiemens"),
    1e-6: ("uS", "µS", "μS", "microsiemens"),
    1e-9: ("nS", "nanosiemens"),
}
_LOG10_OHM = {name: Unit(is_log10=True) for name in ("log10_ohm", "log10_ohms")}
RESISTANCE: Dimension = _scaled(_OHM_NAMES) | _LOG10_OHM | _scaled(_SIEMENS_NAMES, is_reciprocal=True)
CONDUCTANCE: Dimension = _scaled(_SIEMENS_NAMES) | _scaled(_OHM_NAMES, is_reciprocal=True)
CONDUCTANCE_SPREAD: Dimension = _scaled(_SIEMENS_NAMES)
"""The units of a difference or standard deviation of conductances, which resistances do not give."""
VOLTAGE: Dimension = _scaled({1.0: ("V", "volt", "volts"), 1e-3: ("mV", "millivolts")})
CURRENT: Dimension = _scaled(
    {
        1.0: ("A", "ampere", "amperes", "amp", "amps"),
        1e-3: ("mA", "milliamperes"),
        1e-6: ("uA", "µA", "μA", "microamperes"),
        1e-9: ("nA", "nanoamperes"),
        1e-12: ("pA", "picoamperes"),
    }
)
TIME: Dimension = _scaled(
    {
        1.0: ("s", "sec", "second", "seconds"),
        1e-3: ("ms", "milliseconds"),
        1e-6: ("us", "µs", "μs", "microseconds"),
        1e-9: ("ns", "nanoseconds"),
        60.0: ("min", "minutes"),
        3600.0: ("h", "hour", "hours"),
        86400.0: ("d", "day", "days"),
    }
)
TEMPERATURE: Dimension = _scaled({1.0: ("K", "kelvin")}) | {
    name: Unit(offset=273.15) for name in ("C", "°C", "celsius", "degC")
}
NUMBER: Dimension = {"": Unit()}
"""The unit of plain numbers, such as the number of a cycle, whose column names none."""

_DIMENSIONS = (RESISTANCE, CONDUCTANCE, VOLTAGE, CURRENT, TIME, TEMPERATURE)
_CASE_MATTERS = "mohm"  # it may be milliohm or megaohm


@dataclass(frozen=True)
class Column:
    """The column of one quantity: its name in the table and the conversion of its values to SI units."""

    name: str
    unit: Unit = Unit()

    def convert(self, values: Floats) -> Floats:
        """Convert `values` of the table to the SI unit of the quantity."""
        return self.unit.convert(values)


_NO_UNITS = ("", "-", "1", "#", "no", "no.", "nr", "nr.", "a.u.", "arb.", "none", "text", "count", "index")


def is_unit(text: str) -> bool:
    """Return whether a text such as `kOhm`, `(V)` or `[uA]` is a unit, or stands for none."""
    bare = _bare(text)
    return bare.lower() in _NO_UNITS or any(bare in dimension for dimension in _DIMENSIONS)


def parse_column(
    name: str, theirs: str, quantities: Mapping[str, Dimension], where: str, unit_below: str = ""
) -> tuple[str | None, Column]:
    """Return the quantity that a column holds and its conversion; the quantity is None for a column of another.

    A column is named for its quantity and unit, as in `hrs_kohm`, `HRS (kOhm)` or `time [s]`.

    Args:
        name: the name that says the quantity.
        theirs: the name in the table, whose unit in brackets is taken where `name` has none.
        quantities: quantity -> units of its dimension.
        where: name of the file, for messages.
        unit_below: the unit of the column in a row below the names.

    Raises:
        InputError: for a quantity without a unit, and for an unknown unit.
    """
    words = "|".join(sorted(map(re.escape, quantities), key=len, reverse=True))
    match = re.fullmatch(rf"({words})(?:(\s*[_/(\[]|\s)\s*(.*))?", name.strip(), re.IGNORECASE)
    if match is None:
        return None, Column(theirs)
    quantity = match[1].lower()
    dimension = quantities[quantity]
    own, below = _bare(match[3] or ""), _bare(unit_below)
    if dimension is NUMBER:
        return (quantity, Column(theirs)) if not own else (None, Column(theirs))
    if own and match[2].isspace() and unit_of(own, dimension) is None:
        return None, Column(theirs)  # words such as "time of day"
    in_theirs = re.search(r"[(\[]([^()\[\]]+)[)\]]\s*$", theirs)
    given = _bare(in_theirs[1]) if in_theirs and unit_of(_bare(in_theirs[1]), dimension) is not None else ""
    text = own or below or given
    if not text:
        example = f"{quantity}_{preferred_unit(dimension)}"
        raise InputError(f"{where}: column {theirs}: names no unit; call it {example} or --column {example}={theirs}")
    unit = unit_of(text, dimension)
    if own and below and unit is not None and unit_of(below, dimension) != unit:
        raise InputError(f"{where}: column {theirs}: its unit is {own} by its name and {below} below it; keep one")
    if unit is None:
        known = ", ".join(dict.fromkeys(known for known in dimension if known.isascii()))
        raise InputError(f"{where}: column {theirs}: unknown unit {text} (known: {known})")
    return quantity, Column(theirs, unit)


def unit_of(text: str, dimension: Dimension) -> Unit | None:
    """Return the unit of a dimension that `text` names, None where it is unknown or its case leaves it open."""
    if text in dimension:
        return dimension[text]
    alike = {unit for known, unit in dimension.items() if known.lower() == text.lower()}
    if len(alike) == 1 and not text.lower().startswith(_CASE_MATTERS):
        return alike.pop()
    return None


def preferred_unit(dimension: Dimension) -> str:
    """Return the SI unit as it ends the name of a column: `ohms`, `volts`."""
    units = [name for name, unit in dimension.items() if unit == Unit()]
    return max((name for name in units if name.isascii() and name.islower()), key=len, default="")


def _bare(unit: str) -> str:
    """Return a unit without the brackets around it."""
    return unit.strip().strip("()[]").strip()
