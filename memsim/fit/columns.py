"""The columns of a table of measurements: their quantities and units, and the options that name them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from memsim.errors import InputError
from memsim.fit.arrays import Floats

_OHMS = {"ohm": 1.0, "ohms": 1.0, "kohm": 1e3, "kohms": 1e3, "Mohm": 1e6, "Mohms": 1e6}
_VOLTS = {"V": 1.0, "volt": 1.0, "volts": 1.0, "mV": 1e-3, "millivolts": 1e-3}
_AMPERES = {"A": 1.0, "ampere": 1.0, "amperes": 1.0, "mA": 1e-3, "uA": 1e-6, "µA": 1e-6, "μA": 1e-6, "nA": 1e-9}
_SECONDS = {"s": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6}
LOG10_OHMS = ("log10_ohm", "log10_ohms")
KEYS = ("device", "cycle")
FEATURES = {"hrs": _OHMS, "us": _VOLTS, "lrs": _OHMS, "ur": _VOLTS}
"""Units of the columns of a feature table, in the order of the model's features; a column's name ends in its unit."""
SWEEP = {"voltage": _VOLTS, "current": _AMPERES}
OPTIONAL = {"time": _SECONDS}
_PREFERRED = {"hrs": "hrs_ohms", "us": "us_volts", "lrs": "lrs_ohms", "ur": "ur_volts"} | {
    "voltage": "voltage_volts",
    "current": "current_amperes",
}
_CASE_MATTERS = "mohm"  # it may be milliohm or megaohm


@dataclass(frozen=True)
class Column:
    """The column of one quantity: its name in the table and the conversion of its values to the model's units."""

    name: str
    factor: float = 1.0
    is_log10: bool = False

    def convert(self, values: Floats) -> Floats:
        """Convert `values` of the table to ohm, volt, ampere or second."""
        if not self.is_log10:
            return values * self.factor if self.factor != 1.0 else values
        with np.errstate(over="ignore"):
            return np.power(10.0, values)


@dataclass(frozen=True)
class Layout:
    """The columns of a table: `features` (a row for each device and cycle) or `sweeps` (a row for each sample)."""

    kind: str
    columns: Mapping[str, Column]  # quantity -> column; includes device and cycle
    unused: tuple[str, ...]


def parse_renames(column: Mapping[str, str] | Sequence[str] | str) -> dict[str, str]:
    """Return expected names -> names in the file, from a mapping or from strings `NAME=THEIRS`.

    Raises:
        InputError: for a string of another form.
    """
    if isinstance(column, Mapping):
        return dict(column)
    renames = {}
    for pair in [column] if isinstance(column, str) else column:
        name, equals, theirs = pair.partition("=")
        if not (name and equals and theirs):
            raise InputError(f"--column {pair}: expected NAME=THEIRS, such as hrs_kohm=RH")
        renames[name] = theirs
    return renames


def parse_features(from_base: Sequence[str] | str) -> list[str]:
    """Return names of features in lower case, from names or from lists separated by commas.

    Raises:
        InputError: for an unknown name, and if all four are given.
    """
    texts = [from_base] if isinstance(from_base, str) else from_base
    names = [name.strip().lower() for text in texts for name in text.split(",")]
    if wrong := [name for name in names if name not in FEATURES]:
        raise InputError(f"--from-base {wrong[0]}: expected hrs, us, lrs or ur")
    if len(set(names)) == len(FEATURES):
        raise InputError("--from-base hrs,us,lrs,ur: leaves nothing to fit")
    return names


def resolve(
    found: Sequence[str], where: str, renamed: Mapping[str, str] | None = None, without: Sequence[str] = ()
) -> Layout:
    """Return the layout of a table with the columns `found`.

    Args:
        found: names of the columns in the table.
        where: name of the file, for messages.
        renamed: names as memsim expects them -> names in the table.
        without: features that the table need not have.

    Raises:
        InputError: for a missing column, a missing or unknown unit, and two columns of one quantity.
    """
    renamed = dict(renamed or {})
    for expected, theirs in renamed.items():
        if theirs not in found:
            raise InputError(f"{where}: --column {expected}={theirs}: no such column {_near(theirs, found)}")
    theirs_of = {name: name for name in found if name not in renamed.values()} | renamed
    quantities: dict[str, Column] = {}
    for name, theirs in theirs_of.items():
        quantity, column = _parse(name, theirs, where)
        if quantity is not None and quantity in quantities:
            raise InputError(f"{where}: columns {quantities[quantity].name} and {theirs} are both {quantity}; keep one")
        if quantity is not None:
            quantities[quantity] = column
    kind = "sweeps" if SWEEP.keys() & quantities.keys() and not FEATURES.keys() & quantities.keys() else "features"
    wanted = [*KEYS, *(SWEEP if kind == "sweeps" else (key for key in FEATURES if key not in without))]
    if missing := [key for key in wanted if key not in quantities]:
        names = ", ".join(_PREFERRED.get(key, key) for key in missing)
        hint = ""
        if kind == "features":
            unmeasured = ",".join(key for key in missing if key in FEATURES)
            hint = f"; --from-base {unmeasured} takes what was not measured from the base model" if unmeasured else ""
        raise InputError(
            f"{where}: lacks {names} (columns: {', '.join(found)}); --column {names.split(', ')[0]}=THEIRS names "
            f"another{hint}"
        )
    taken = {key: quantities[key] for key in [*wanted, *OPTIONAL] if key in quantities}
    used = {column.name for column in taken.values()}
    return Layout(kind, taken, tuple(name for name in found if name not in used))


def _parse(name: str, theirs: str, where: str) -> tuple[str | None, Column]:
    """Return (quantity, column) of the column `theirs` under the expected `name`; quantity None if it is not used."""
    lower = name.strip().lower()
    if lower in KEYS:
        return lower, Column(theirs)
    match = re.fullmatch(r"(hrs|us|lrs|ur|voltage|current|time)(?:_(.+))?", name.strip(), re.IGNORECASE)
    if match is None:
        return None, Column(theirs)
    quantity, unit = match[1].lower(), match[2]
    units = (FEATURES | SWEEP | OPTIONAL)[quantity]
    if unit is None:
        example = _PREFERRED.get(quantity, f"{quantity}_{next(iter(units))}")
        raise InputError(f"{where}: column {theirs}: names no unit; call it {example} or --column {example}={theirs}")
    if unit in units:
        return quantity, Column(theirs, units[unit])
    if units is _OHMS and unit.lower() in LOG10_OHMS:
        return quantity, Column(theirs, is_log10=True)
    alike = {factor for known, factor in units.items() if known.lower() == unit.lower()}
    if len(alike) == 1 and not unit.lower().startswith(_CASE_MATTERS):
        return quantity, Column(theirs, alike.pop())
    known = [*units, *(LOG10_OHMS[:1] if units is _OHMS else ())]
    raise InputError(f"{where}: column {theirs}: unknown unit {unit} (known: {', '.join(dict.fromkeys(known))})")


def _near(name: str, found: Sequence[str]) -> str:
    close = get_close_matches(name, found, n=1)
    return f"(nearest: {close[0]})" if close else f"(available: {', '.join(found)})"
