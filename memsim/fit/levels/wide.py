"""Tables of readings with a row for each cell and a column for each time, such as `conductance_uS at 10 s`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from memsim.fit.named import Labels, NamedColumns, read_columns
from memsim.fit.quantities import CONDUCTANCE, TIME, Dimension, unit_of
from memsim.units import counted

_TIMED = re.compile(
    r"(?:conductance|resistance)(?P<unit>.*?)(?:\s*(?:@|\bat\b|\bafter\b|\bt\s*=)|[\s_])\s*"
    r"(?P<time>\d+\.?\d*(?:e[-+]?\d+)?)\s*(?P<time_unit>[a-zµμ]+)",
    re.IGNORECASE,
)


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
    times: Mapping[str, float],
    quantities: Mapping[str, Dimension],
    names: Sequence[str],
    renamed: Mapping[str, str] | None,
) -> NamedColumns:
    """Read a table of readings with a column for each time as if it had a row for each cell and time.

    Args:
        paths: the files.
        times: column -> its time in seconds (see `times_of`).
        quantities: those of readings; what a table has besides its readings holds for all times of a row.
        names: names of the columns in order (see `read_columns`).
        renamed: names as memsim expects them -> names in the table.

    Raises:
        InputError: in one line, for files that cannot be read, or that lack a unit.
    """
    places = {f"reading{place}": name for place, name in enumerate(times)}
    units = [match["unit"] for name in times if (match := _TIMED.fullmatch(name.strip()))]
    expected = {f"{place}{unit}": name for (place, name), unit in zip(places.items(), units, strict=True)}
    of_cells = {key: quantities[key] for key in ("cell", "device", "target", "temperature")}
    wide = read_columns(
        paths,
        of_cells | dict.fromkeys(places, CONDUCTANCE),
        list(places),
        labels=("cell", "device"),
        names=names,
        renamed=(renamed or {}) | expected,
    )
    each = np.repeat(np.arange(wide.rows), len(times))
    labels = {key: replace(own, index=own.index[each]) for key, own in wide.labels.items()}
    numbers = {key: values[each] for key, values in wide.numbers.items() if key not in places}
    return replace(
        wide,
        rows=len(each),
        numbers=numbers
        | {
            "time": np.tile(np.array(list(times.values())), wide.rows),
            "conductance": np.stack([wide.numbers[place] for place in places], axis=1).reshape(-1),
        },
        labels=labels or {"cell": Labels(tuple(str(row) for row in range(1, wide.rows + 1)), each)},
        columns={key: column for key, column in wide.columns.items() if key not in places}
        | {"conductance": wide.columns["reading0"]},
        notes=(*wide.notes, f"{counted(wide.rows, 'row')} with a column for each of {len(times)} times"),
    )
