"""Tables of levels: readings (cell, time, conductance) and summaries (target, mean, standard deviation)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from memsim.errors import InputError
from memsim.fit.arrays import Bools, Floats, Ints
from memsim.fit.columns import FEATURES, SWEEP
from memsim.fit.levels.changes import Changes
from memsim.fit.levels.matrices import holds_matrices, read_matrices
from memsim.fit.levels.wide import read_wide, require_named_times, times_of
from memsim.fit.named import NamedColumns, read_columns
from memsim.fit.quantities import (
    CONDUCTANCE,
    CONDUCTANCE_SPREAD,
    NUMBER,
    RESISTANCE,
    TEMPERATURE,
    TIME,
    Dimension,
)
from memsim.fit.tables import open_tables
from memsim.storage.files import file_sha256
from memsim.units import counted

DEVIATIONS = ("standard_deviation", "std", "sd", "deviation", "sigma")
"""The names of a column of standard deviations."""
READINGS: Mapping[str, Dimension] = {
    "cell": NUMBER,
    "device": NUMBER,
    "time": TIME,
    "conductance": CONDUCTANCE,
    "resistance": RESISTANCE,
    "target": CONDUCTANCE,
    "temperature": TEMPERATURE,
}
SUMMARY: Mapping[str, Dimension] = {
    "target": CONDUCTANCE,
    "mean": CONDUCTANCE,
    "time": TIME,
    "temperature": TEMPERATURE,
} | dict.fromkeys(DEVIATIONS, CONDUCTANCE_SPREAD)
_KNOWN = {*READINGS, *SUMMARY, *FEATURES, *SWEEP, "cycle", "pulse"}
"""First words of the names of columns of tables, which matrices have none of."""
LEAST_CELLS = 20
"""The fewest cells that a law is fitted to."""
_SAME_KELVIN = 1.0
_GAP = 1.3
"""Times further apart than by this factor are of different groups."""
_LONGEST_GROUP = 3.0
MICRO = 1e6
"""Microsiemens in a siemens."""


@dataclass(frozen=True, eq=False)
class Source:
    """The files of a table and how they were read."""

    files: tuple[Path, ...]
    rows: int
    columns: Mapping[str, str]
    unused: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The first file."""
        return self.files[0]

    @property
    def name(self) -> str:
        """The file's name, and how many more there are."""
        return self.path.name if len(self.files) == 1 else f"{self.path.name} and {len(self.files) - 1} more"

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the first file, in hex."""
        return file_sha256(self.path)


@dataclass(frozen=True, eq=False)
class Readings:
    """Conductances of cells at times after programming, each cell with its conductance at the start.

    Attributes:
        start_seconds: the clock of the table at the start: 0, or the time of the first readings.
        start: conductance of each cell at the start [cells], in µS.
        target: target of each cell [cells], in µS; None if the table has none.
        changes: the readings after the start, whose `seconds` are the clock of the table.
        group_seconds: median time of each group of readings [groups], as numbered in `changes.group`.
    """

    source: Source
    start_seconds: float
    start: Floats
    target: Floats | None
    changes: Changes
    group_seconds: Floats


@dataclass(frozen=True, eq=False)
class Summary:
    """Means and standard deviations of cells programmed to targets.

    Attributes:
        seconds: rising times [times]; [0] where the table has none.
        targets: rising [targets], in µS.
        mean: [times, targets] in µS.
        deviation: standard deviations [times, targets], in µS.
        kind: `summary`, or `pulses` where the targets are the means after numbers of pulses.
    """

    source: Source
    seconds: Floats
    targets: Floats
    mean: Floats
    deviation: Floats
    kind: str = "summary"


def levels_kind(paths: str | Path | Sequence[str | Path], names: Sequence[str], renamed: Mapping[str, str]) -> str:
    """Return `readings`, `summary` or `pulses` for a table of levels, and an empty text for one of another kind.

    A table with a conductance (or resistance) of cells and no other feature holds readings, or pulses where it numbers
    these and has no times; one with a mean and a standard deviation by target is a summary.

    Raises:
        InputError: for columns that are for times, but do not say what they hold, and for conductances without times
            and targets.
    """
    first = paths if isinstance(paths, str | Path) else next(iter(paths), "")
    if not Path(first).exists():
        return ""  # whoever reads it says so, after what is wrong with the options
    if holds_matrices(paths, names, _KNOWN, LEAST_CELLS):
        return "readings"
    found = open_tables(paths, names)[0].columns
    shown = [name for name in found if name not in renamed.values()] + list(renamed)
    words = {match[0].lower() for name in shown if (match := re.match(r"[A-Za-z]+(_deviation)?", name.strip()))}
    times = times_of(found)
    if not times and not words & {"hrs", "lrs", "us", "ur", "voltage", "current"}:
        require_named_times(first, found)
    if {"target", "mean"} <= words and words & set(DEVIATIONS):
        return "summary"
    if words & {"conductance", "resistance"} and "pulse" in words and not words & {"time", "target"}:
        return "pulses"
    has_times = bool(words & {"time", "target"} or times)
    if words & {"conductance", "resistance"} and not words & {"voltage", "current"}:
        if has_times:
            return "readings"
        if not words & {"hrs", "lrs", "us", "ur"}:
            raise InputError(
                f"{first}: has conductances, but no time or target of them (columns: {', '.join(found)}); --column "
                "time_seconds=THEIRS or target_uS=THEIRS names it"
            )
    return ""


def read_readings(
    paths: str | Path | Sequence[str | Path],
    names: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    temperature_kelvin: float | None = None,
) -> Readings:
    """Read a table of (cell, time, conductance[, target][, temperature]), a column for each time, or matrices.

    Raises:
        InputError: in one line, for a table that cannot be read or whose rows make no changes with time.
    """
    if holds_matrices(paths, names, _KNOWN, LEAST_CELLS):
        table = read_matrices(paths, READINGS, names, renamed)
    elif times_of((first := open_tables(paths, names)[0]).columns):
        table = read_wide(paths, first, READINGS, names, renamed)
    else:
        table = read_columns(paths, READINGS, (), labels=("cell", "device"), names=names, renamed=renamed)
    where = str(table.files[0])
    conductance = conductance_of(table, where)
    cells = cells_of(table, where)
    seconds = table.numbers.get("time", np.zeros(table.rows))
    target = table.numbers.get("target")
    keep, notes = rows_kept(table, temperature_kelvin, where)
    missing = ~(np.isfinite(conductance) & np.isfinite(seconds) & (cells >= 0))
    if (lost := int((missing & keep).sum())) > 0:
        notes.append(f"{counted(lost, 'row')} of {table.rows:,} without a cell, time or conductance left out")
    if (before := (seconds < 0) & keep).any():
        raise InputError(f"{where}: row {int(np.argmax(before)) + 1}: the time is below 0; count it from programming")
    keep &= ~missing
    cells, seconds, conductance = cells[keep], seconds[keep], conductance[keep] * MICRO
    target = None if target is None else target[keep] * MICRO
    if (negative := conductance <= 0).any():
        notes.append(f"{counted(int(negative.sum()), 'reading')} of {len(cells):,} at or below 0 S: noise of the meter")
    source = Source(table.files, table.rows, {q: c.name for q, c in table.columns.items()}, table.unused, table.notes)
    return _with_starts(source, cells, seconds, conductance, target, notes)


def _with_starts(
    source: Source, cells: Ints, seconds: Floats, conductance: Floats, target: Floats | None, notes: list[str]
) -> Readings:
    """Return the readings with the start of each cell: the mean of its readings in the first group of times."""
    if not len(cells):
        raise InputError(f"{source.path}: has no complete row (a cell, a time and a conductance)")
    group, at = group_times(seconds)
    is_first = group == 0
    size = int(cells.max()) + 1
    count = np.bincount(cells[is_first], minlength=size)
    has_start = count > 0
    if late := int((np.bincount(cells, minlength=size) > 0).sum() - has_start.sum()):
        notes.append(f"{counted(late, 'cell')} without a reading at the first time ({at[0]:g} s) left out")
    if (found := int(has_start.sum())) < LEAST_CELLS:
        raise InputError(
            f"{source.path}: {counted(found, 'cell')} with a reading at the first time ({at[0]:g} s); a law of levels "
            f"needs {LEAST_CELLS}"
        )
    start = np.bincount(cells[is_first], conductance[is_first], size)[has_start] / count[has_start]
    number = np.cumsum(has_start) - 1
    later = ~is_first & has_start[cells]
    aims = None
    if target is not None:
        aims = np.full(size, np.nan)
        aims[cells[is_first]] = target[is_first]
        aims = aims[has_start]
    clock = float(at[0])
    numbers = number[cells[later]]
    first_seconds = clock if clock > 0 else float(seconds[later].min()) if later.any() else 1.0
    changes = Changes(numbers, start[numbers], seconds[later], conductance[later], group[later] - 1, first_seconds)
    noted = Source(source.files, source.rows, source.columns, source.unused, (*source.notes, *notes))
    return Readings(noted, clock, start, aims, changes, at[1:])


def read_summary(
    paths: str | Path | Sequence[str | Path],
    names: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    temperature_kelvin: float | None = None,
) -> Summary:
    """Read a table of (target, mean, standard deviation[, time]), with a row for each target and time.

    Raises:
        InputError: in one line, for a table that cannot be read, or that lacks a target at a time.
    """
    table = read_columns(paths, SUMMARY, ("target", "mean"), names=names, renamed=renamed)
    where = str(table.files[0])
    given = [name for name in DEVIATIONS if name in table.numbers]
    if len(given) != 1:
        raise InputError(f"{where}: {' and '.join(given) or 'no column'} for the standard deviation; keep one")
    keep, notes = rows_kept(table, temperature_kelvin, where)
    seconds = table.numbers.get("time", np.zeros(table.rows))
    values = [table.numbers["target"] * MICRO, table.numbers["mean"] * MICRO, table.numbers[given[0]] * MICRO]
    complete = keep & np.isfinite(seconds) & np.all(np.isfinite(values), axis=0)
    if (lost := int((keep & ~complete).sum())) > 0:
        notes.append(f"{counted(lost, 'row')} of {table.rows:,} without a target, mean or standard deviation left out")
    target, mean, deviation = (value[complete] for value in values)
    seconds = seconds[complete]
    if (deviation < 0).any():
        raise InputError(f"{where}: a standard deviation is below 0; check the column {table.columns[given[0]].name}")
    times, at_time = np.unique(seconds, return_inverse=True)
    targets, at_target = np.unique(target, return_inverse=True)
    count = np.zeros((len(times), len(targets)), dtype=int)
    np.add.at(count, (at_time, at_target), 1)
    if len(targets) < 2:
        raise InputError(f"{where}: holds {counted(len(targets), 'target')}; a device of levels needs two or more")
    if (count != 1).any():
        t, k = (int(i[0]) for i in np.nonzero(count != 1))
        what = "no row" if not count[t, k] else f"{count[t, k]} rows"
        raise InputError(f"{where}: {what} for the target {targets[k]:g} uS at {times[t]:g} s; give one for each time")
    grids = np.empty((2, *count.shape))
    grids[:, at_time, at_target] = mean, deviation
    columns = {quantity: column.name for quantity, column in table.columns.items()}
    source = Source(table.files, table.rows, columns, table.unused, (*table.notes, *notes))
    return Summary(source, times, targets, *grids)


def group_times(seconds: Floats) -> tuple[Ints, Floats]:
    """Return the group of each time [n], numbered from the earliest, and the median time of each group.

    Readings planned for one time are taken one after another, so near times are one group: zero, and runs of times with
    no gap of over 30 %. Runs that are longer than a factor of 3 are cut into halves of decades.
    """
    log = np.log(np.where(seconds > 0, seconds, 1.0))
    edges: list[float] = []
    unique = np.unique(log[seconds > 0])
    runs = np.split(unique, np.flatnonzero(np.diff(unique) > np.log(_GAP)) + 1) if len(unique) else []
    for run in runs:
        edges.append(run[0])
        if run[-1] - run[0] > np.log(_LONGEST_GROUP):
            edges += list(np.arange(run[0], run[-1], np.log(10) / 2)[1:])
    number = np.where(seconds > 0, np.searchsorted(edges, log, side="right"), 0)
    _, group = np.unique(number, return_inverse=True)
    return group, np.array([np.median(seconds[group == k]) for k in range(int(group.max()) + 1)])


def conductance_of(table: NamedColumns, where: str) -> Floats:
    """Return conductances [rows] in S; resistances beside them are not used."""
    if "conductance" in table.numbers:
        return table.numbers["conductance"]
    if "resistance" not in table.numbers:
        raise InputError(f"{where}: lacks conductance_siemens; --column conductance_siemens=THEIRS names it")
    with np.errstate(divide="ignore"):
        return np.asarray(1 / table.numbers["resistance"])


def cells_of(table: NamedColumns, where: str) -> Ints:
    """Return the index of the cell of each row [rows], the rows' numbers where neither cells nor times are given."""
    if present := [name for name in ("cell", "device") if name in table.labels]:
        if len(present) == 2:
            raise InputError(f"{where}: columns cell and device; name the cell by one of them (--column cell=THEIRS)")
        labels = table.labels[present[0]]
        if labels.names and re.match(r"(?i)(time|target|conductance|resistance)[\W_]", labels.names[0]):
            raise InputError(
                f"{where}: row 1: the {present[0]} is {labels.names[0]!r:.40}, of a second row of names; leave it out, "
                "and name the columns conductance_uS at 1 s target 5 uS and so on"
            )
        return labels.index
    if "time" in table.numbers:
        raise InputError(
            f"{where}: lacks cell (columns: {', '.join(c.name for c in table.columns.values())}); "
            "--column cell=THEIRS names another, and cell=file takes the names of the files"
        )
    return np.arange(table.rows)


def rows_kept(table: NamedColumns, temperature_kelvin: float | None, where: str) -> tuple[Bools, list[str]]:
    """Return the mask of rows at one temperature, and remarks."""
    kelvin = table.numbers.get("temperature")
    if kelvin is None:
        if temperature_kelvin is not None:
            raise InputError(f"{where}: --temperature-kelvin {temperature_kelvin:g}: has no column of temperatures")
        return np.ones(table.rows, dtype=bool), []
    known = np.unique(np.round(kelvin[np.isfinite(kelvin)]))
    listed = ", ".join(f"{value:g}" for value in known)
    if temperature_kelvin is None and len(known) > 1:
        raise InputError(f"{where}: temperatures {listed} K; --temperature-kelvin {known[0]:g} takes one of them")
    if temperature_kelvin is None:
        return np.ones(table.rows, dtype=bool), [f"all readings at {listed} K"] if len(known) else []
    keep = np.abs(kelvin - temperature_kelvin) <= _SAME_KELVIN
    if not keep.any():
        raise InputError(f"{where}: --temperature-kelvin {temperature_kelvin:g}: no row (temperatures: {listed} K)")
    return keep, [f"{counted(int(keep.sum()), 'row')} of {table.rows:,}, at {temperature_kelvin:g} K"]
