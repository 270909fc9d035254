"""Tables of readings with a row for each cell and a column for each time, such as `conductance_uS at 10 s`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from memsim.errors import InputError
from memsim.fit.named import Labels, NamedColumns, read_columns
from memsim.fit.quantities import CONDUCTANCE, TIME, Dimension, unit_of
from memsim.fit.tables import Table
from memsim.units import counted

TIME_IN_NAME = re.compile(
    r"(?:^|[\s_=(@-])(?P<time>\d+\.?\d*(?:e[-+]?\d+)?)\s*(?P<time_unit>[a-zµμ]+)(?=$|[\s_)\]-])", re.IGNORECASE
)
"""A time in the name of a column or file, such as `G_10s`."""
_TIMED = re.compile(
    r"(?:conductance|resistance)(?P<unit>.*?)(?:\s*(?:@|\bat\b|\bafter\b|\bt\s*=)|[\s_])\s*"
    r"(?P<time>\d+\.?\d*(?:e[-+]?\d+)?)\s*(?P<time_unit>[a-zµμ]+)"
    r"(?:[\s,;_(]+target[\s_=:]*(?P<target>\d+\.?\d*)\s*(?P<target_unit>[a-zµμΩ]+)\)?)?",
    re.IGNORECASE,
)


def require_named_times(path: str | Path, columns: Sequence[str]) -> None:
    """Raise InputError for a table of columns such as `G_10s`, which are for times, but do not say what they hold."""
    found = [name for name in columns if (match := TIME_IN_NAME.search(name)) and unit_of(match["time_unit"], TIME)]
    if len(found) < 2:
        return
    remedy = (
        "do not say what they hold; call them conductance_uS at 1 s, or conductance_uS at 1 s target 5 uS where a row "
        "has several cells, and so on, in the file or in order by --columns"
    )
    if any(name.lower().startswith("mean") for name in columns):
        remedy = "a summary has a row for each target and time, in columns target_uS, mean_uS, std_uS and time_s"
    raise InputError(f"{path}: columns {found[0]}, {found[1]} ...: {remedy}")


def times_of(columns: Sequence[str]) -> dict[str, float]:
    """Return the time in seconds of each column that holds the readings of one time."""
    found = {}
    for name in columns:
        match = _TIMED.fullmatch(name.strip())
        if match and (unit := unit_of(match["time_unit"], TIME)):
            found[name] = float(match["time"]) * unit.factor
    return found


def read_wide(
    paths: str | Path | Sequence[str | Path],
    first: Table,
    quantities: Mapping[str, Dimension],
    names: Sequence[str],
    renamed: Mapping[str, str] | None,
) -> NamedColumns:
    """Read a table of readings with a column for each time as if it had a row for each cell and time.

    Args:
        paths: the files.
        first: the first of them, opened, which has `times_of` its columns.
        quantities: those of readings; what a table has besides its readings holds for all times of a row.
        names: names of the columns in order (see `read_columns`).
        renamed: names as memsim expects them -> names in the table.

    Raises:
        InputError: in one line, for files that cannot be read, or that lack a unit.
    """
    times = times_of(first.columns)
    places = {f"reading{place}": name for place, name in enumerate(times)}
    units = [match["unit"] for name in times if (match := _TIMED.fullmatch(name.strip()))]
    for name, unit in zip(times, units, strict=True):
        if not unit.strip() and name not in first.units:
            raise InputError(
                f"{first.path}: column {name}: names no unit; call it conductance_uS at {times[name]:g} s, in the file "
                "or in order by --columns"
            )
    expected = {f"{place}{unit}": name for (place, name), unit in zip(places.items(), units, strict=True)}
    of_cells = {key: quantities[key] for key in ("cell", "device", "target", "temperature")}
    wide = read_columns(
        paths,
        of_cells | dict.fromkeys(places, CONDUCTANCE),
        list(places),
        labels=("cell", "device"),
        names=names,
        renamed={**(renamed or {}), **expected},
    )
    each = np.repeat(np.arange(wide.rows), len(times))
    labels = {key: replace(own, index=own.index[each]) for key, own in wide.labels.items()} or {
        "cell": Labels(tuple(str(row) for row in range(1, wide.rows + 1)), each)
    }
    numbers = {key: values[each] for key, values in wide.numbers.items() if key not in places}
    notes = [f"{counted(wide.rows, 'row')} with a column for each of {len(set(times.values()))} times"]
    if targets := _targets_of(times, str(first.path)):
        if "target" in numbers:
            raise InputError(f"{first.path}: targets in a column and in the names of others; keep one")
        distinct, cell_in_row = np.unique(targets, return_inverse=True)
        numbers["target"] = np.tile(targets, wide.rows)
        place = np.tile(cell_in_row, wide.rows)
        labels = {
            key: Labels(
                tuple(f"{name} {aim * 1e6:g} uS" for name in own.names for aim in distinct),
                np.where(own.index < 0, -1, own.index * len(distinct) + place),
            )
            for key, own in labels.items()
        }
        notes.append(f"{len(distinct)} cells in each row, one for each target")
    return replace(
        wide,
        rows=len(each),
        numbers=numbers
        | {
            "time": np.tile(np.array(list(times.values())), wide.rows),
            "conductance": np.stack([wide.numbers[place] for place in places], axis=1).reshape(-1),
        },
        labels=labels,
        columns={key: column for key, column in wide.columns.items() if key not in places}
        | {"conductance": wide.columns["reading0"]},
        notes=(*wide.notes, *notes),
    )


def _targets_of(names: Iterable[str], where: str) -> list[float]:
    """Return the targets in siemens that the names of readings give, none where they give none."""
    found = [match for name in names if (match := _TIMED.fullmatch(name.strip()))]
    given = [(match["target"], unit_of(match["target_unit"], CONDUCTANCE)) for match in found if match["target"]]
    if not given:
        return []
    if len(given) < len(found) or not all(unit for _, unit in given):
        raise InputError(f"{where}: some columns of readings name no target, or one in no unit of conductance")
    return [float(unit.convert(np.array(float(value)))) for value, unit in given if unit]
