"""Pulse tables (cell, pulse, conductance): each level is the conductance after a number of equal pulses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from memsim.errors import InputError
from memsim.fit.levels.tables import (
    LEAST_CELLS,
    MICRO,
    READINGS,
    Source,
    Summary,
    cells_of,
    conductance_of,
    rows_kept,
)
from memsim.fit.named import read_columns
from memsim.fit.quantities import NUMBER
from memsim.units import counted

LEVELS = 17
"""The largest number of levels that are taken from a table: those nearest to equal steps of the mean conductance."""
_PULSES = {quantity: READINGS[quantity] for quantity in ("cell", "device", "conductance", "resistance", "temperature")}


def read_pulses(
    paths: str | Path | Sequence[str | Path],
    names: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    temperature_kelvin: float | None = None,
) -> Summary:
    """Read a table of (cell, pulse, conductance), with a row for each cell and number of pulses, in any order.

    A cell that is given a number of pulses without verify is at the mean conductance of the cells after as many, with
    their standard deviation; rows of several trains of pulses of one cell count as cells.

    Raises:
        InputError: in one line, for a table that cannot be read or that has too few cells or levels.
    """
    quantities = _PULSES | {"pulse": NUMBER}
    table = read_columns(paths, quantities, ("pulse",), labels=("cell", "device"), names=names, renamed=renamed)
    where = str(table.files[0])
    conductance, pulse = conductance_of(table, where) * MICRO, table.numbers["pulse"]
    keep, notes = rows_kept(table, temperature_kelvin, where)
    complete = keep & np.isfinite(conductance) & np.isfinite(pulse) & (cells_of(table, where) >= 0)
    if (lost := int((keep & ~complete).sum())) > 0:
        notes.append(f"{counted(lost, 'row')} of {table.rows:,} without a cell, pulse or conductance left out")
    _, index, counts = np.unique(pulse[complete], return_inverse=True, return_counts=True)
    enough = counts >= LEAST_CELLS
    if enough.sum() < 2:
        most = int(counts.max(initial=0))
        raise InputError(
            f"{where}: at most {counted(most, 'cell')} after a number of pulses, and a spread of levels needs "
            f"{LEAST_CELLS} after each of two numbers or more; count pulses from the start of each train"
        )
    values = conductance[complete]
    mean = np.bincount(index, values) / counts
    deviation = np.sqrt(np.bincount(index, np.square(values - mean[index])) / np.maximum(counts - 1, 1))
    low, high = mean[enough].min(), mean[enough].max()
    steps = np.linspace(low, high, LEVELS)
    at = np.unique([np.where(enough, np.abs(mean - step), np.inf).argmin() for step in steps])
    at = at[np.argsort(mean[at])]
    notes += [
        f"{len(at)} levels of {counted(int(enough.sum()), 'number')} of pulses, by the mean conductance after them",
        "a level is a number of equal pulses without verify, and its spread is that of the cells after them",
    ]
    columns = {quantity: column.name for quantity, column in table.columns.items()}
    source = Source(table.files, table.rows, columns, table.unused, (*table.notes, *notes))
    return Summary(source, np.zeros(1), mean[at], mean[at][None], deviation[at][None], "pulses")
