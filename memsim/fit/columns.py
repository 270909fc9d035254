"""The columns of a table of cycled cells: their quantities, and the options that name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from memsim.errors import InputError
from memsim.fit.quantities import (
    CURRENT,
    NUMBER,
    RESISTANCE,
    TIME,
    VOLTAGE,
    Column,
    Dimension,
    parse_column,
    preferred_unit,
)
from memsim.fit.tables import FILE, JOINED, LABELS, ROW

KEYS = ("device", "cycle")
FEATURES = {"hrs": RESISTANCE, "us": VOLTAGE, "lrs": RESISTANCE, "ur": VOLTAGE}
"""Dimensions of the columns of a feature table, in the order of the model's features."""
SWEEP = {"voltage": VOLTAGE, "current": CURRENT}
OPTIONAL = {"time": TIME}
CYCLES = "cycles"
"""The changes from cycle to cycle, which `--from-base` takes from the base model as it does features."""
_QUANTITIES: Mapping[str, Dimension] = dict.fromkeys(KEYS, NUMBER) | FEATURES | SWEEP


_SEVERAL = ", or several that together name one (wafer+die), file or row"


@dataclass(frozen=True)
class Layout:
    """The columns of a table: `features` (a row for each device and cycle) or `sweeps` (a row for each sample)."""

    kind: str
    columns: Mapping[str, Column]  # quantity -> column; without cycle, cycles are counted
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
    """Return names of features, or `cycles`, in lower case, from names or from lists separated by commas.

    Raises:
        InputError: for an unknown name, and if all four are given.
    """
    texts = [from_base] if isinstance(from_base, str) else from_base
    names = [name.strip().lower() for text in texts for name in text.split(",")]
    if wrong := [name for name in names if name not in (*FEATURES, CYCLES)]:
        raise InputError(f"--from-base {wrong[0]}: expected hrs, us, lrs or ur, or cycles")
    if FEATURES.keys() <= set(names):
        raise InputError("--from-base hrs,us,lrs,ur: leaves nothing to fit")
    return names


def parse_names(columns: Sequence[str] | str) -> list[str]:
    """Return names of columns in order, from names or from a list separated by commas."""
    names = columns.split(",") if isinstance(columns, str) else list(columns)
    return [name.strip() for name in names] if any(name.strip() for name in names) else []


def columns_by_quantity(
    found: Sequence[str],
    where: str,
    quantities: Mapping[str, Dimension],
    renamed: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
) -> dict[str, Column]:
    """Return quantity -> column of a table with the columns `found`.

    Args:
        found: names of the columns in the table.
        where: name of the file, for messages.
        quantities: quantity -> the units of its dimension.
        renamed: names as memsim expects them -> names in the table.
        units: name of a column -> its unit in a row below the names.

    Raises:
        InputError: for a missing or unknown unit, and for two columns of one quantity.
    """
    renamed, units = dict(renamed or {}), units or {}
    for expected, theirs in renamed.items():
        parts = theirs.split(JOINED) if expected in LABELS and theirs not in found else [theirs]
        if any(part.strip() not in (*found, FILE, ROW) for part in parts):
            raise InputError(f"{where}: --column {expected}={theirs}: no such column {_near(theirs, found)}")
    theirs_of = {name: name for name in found if name not in renamed.values()} | renamed
    columns: dict[str, Column] = {}
    for name, theirs in theirs_of.items():
        quantity, column = parse_column(name, theirs, quantities, where, units.get(theirs, ""))
        if quantity is not None and quantity in columns:
            raise InputError(f"{where}: columns {columns[quantity].name} and {theirs} are both {quantity}; keep one")
        if quantity is not None:
            columns[quantity] = column
    return columns


def require_columns(
    columns: Mapping[str, Column],
    wanted: Iterable[str],
    found: Sequence[str],
    where: str,
    quantities: Mapping[str, Dimension],
    remedy: str = "",
) -> None:
    """Raise InputError, which ends in `remedy`, where a table has no column of a quantity that is wanted."""
    if missing := [key for key in wanted if key not in columns]:
        names = [f"{key}_{unit}" if (unit := preferred_unit(quantities[key])) else key for key in missing]
        raise InputError(
            f"{where}: lacks {', '.join(names)} (columns: {', '.join(found)}); --column {names[0]}=THEIRS names "
            f"another{_SEVERAL if names[0] in LABELS else ''}{remedy}"
        )


def resolve(
    found: Sequence[str],
    where: str,
    renamed: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    units: Mapping[str, str] | None = None,
    *,
    is_one_of_many: bool = False,
) -> Layout:
    """Return the layout of a table of cycled cells with the columns `found`.

    Args:
        found: names of the columns in the table.
        where: name of the file, for messages.
        renamed: names as memsim expects them -> names in the table.
        without: features that the table need not have.
        units: name of a column -> its unit in a row below the names.
        is_one_of_many: whether the table is read together with others; without a column of devices it is a device's.

    Raises:
        InputError: for a missing column, a missing or unknown unit, and two columns of one quantity.
    """
    quantities = columns_by_quantity(found, where, _QUANTITIES, renamed, units)
    kind = "sweeps" if SWEEP.keys() & quantities.keys() and not FEATURES.keys() & quantities.keys() else "features"
    if kind == "sweeps":
        quantities |= columns_by_quantity(found, where, OPTIONAL, renamed, units)
    if is_one_of_many:
        quantities.setdefault("device", Column(FILE))
    wanted = ["device", *(SWEEP if kind == "sweeps" else (key for key in FEATURES if key not in without))]
    if not quantities.keys() & {*SWEEP, *FEATURES}:
        raise InputError(
            f"{where}: no column has a name that says what was measured (columns: {', '.join(found)}); --column "
            "NAME=THEIRS tells it: of cycles device, hrs_ohms, us_volts, lrs_ohms and ur_volts, of sweeps device, "
            "voltage_volts and current_amperes, of levels cell, conductance_uS and time_seconds or target_uS"
        )
    unmeasured = ",".join(key for key in wanted if key in FEATURES and key not in quantities)
    remedy = f"; --from-base {unmeasured} takes what was not measured from the base model" if unmeasured else ""
    require_columns(quantities, wanted, found, where, _QUANTITIES, remedy)
    taken = {key: quantities[key] for key in ["device", "cycle", *wanted, *OPTIONAL] if key in quantities}
    used = {part.strip() for column in taken.values() for part in (column.name, *column.name.split(JOINED))}
    return Layout(kind, taken, tuple(name for name in found if name not in used))


def _near(name: str, found: Sequence[str]) -> str:
    close = get_close_matches(name, found, n=1)
    return f"(nearest: {close[0]})" if close else f"(available: {', '.join(found)})"
