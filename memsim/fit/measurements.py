"""Measurements of many cycles of many devices, as a dense array of the model's four features.

A file is read in batches. One float32 for each feature, device and cycle stays in memory, and a sample of the sweeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from memsim.device.cycles.model import LRS
from memsim.errors import InputError
from memsim.fit.arrays import Floats, Ints
from memsim.fit.columns import FEATURES, Layout, resolve
from memsim.fit.cycle_grid import CycleRows
from memsim.fit.failures import Failures, split_failures
from memsim.fit.named import joint_layouts, joint_notes
from memsim.fit.sweeps import SweepReader, Traces
from memsim.fit.tables import Batch, Table, open_tables
from memsim.storage.files import file_sha256

NAMES = ("HRS", "US", "LRS", "UR")
POLARITIES = ("negative", "positive", "magnitude")

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Fault:
    """Values of one column that the model cannot represent: the first one, and their number."""

    row: int
    column: str
    value: float
    remedy: str
    count: int

    def __str__(self) -> str:
        times = f" (and {self.count - 1:,} more)" if self.count > 1 else ""
        return f"row {self.row}: {self.column} is {self.value:g}{times}; {self.remedy}"


@dataclass(frozen=True)
class Measurements:
    """The four features of every device and cycle, and the file that they come from."""

    path: Path  # the file, or the folder of several
    layout: Layout
    rows: int  # number of rows in the files
    devices: tuple[str, ...]
    first_cycles: Ints  # [devices] number of the cycle at index 0
    y: Floats  # [4, devices, cycles]: HRS (log10 ohm), US (V), LRS (ohm), UR (V); NaN in gaps and after failures
    read_volts: float  # voltage at which the resistances were measured
    faults: tuple[Fault, ...] = ()
    traces: Traces | None = None  # a sample of the cycles, if the file holds sweeps
    outcomes: Mapping[str, int] = field(default_factory=dict)  # outcome of a sweep -> number of cycles
    files: tuple[Path, ...] = ()
    failures: Failures | None = None  # of SETs and RESETs
    notes: tuple[str, ...] = ()  # remarks for people about the values
    how_read: tuple[str, ...] = ()  # and about the layout of the files

    @property
    def measured(self) -> tuple[int, ...]:
        """The features in the file, as indices into NAMES."""
        return tuple(i for i, key in enumerate(FEATURES) if self.layout.kind == "sweeps" or key in self.layout.columns)

    def modelled(self, lrs_is_log10: bool) -> Floats:
        """Return the features [4, devices, cycles] as a model has them: `y`, with LRS in log10 ohm where it is so."""
        if not lrs_is_log10:
            return self.y
        y = self.y.copy()
        y[LRS] = np.log10(y[LRS])
        return y

    @cached_property
    def counts(self) -> Ints:
        """[4, devices] number of cycles in which each feature was measured."""
        return np.asarray(np.isfinite(self.y).sum(axis=2))

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, in hex; of several, that of a list of theirs."""
        hashes = [file_sha256(path) for path in self.files or (self.path,)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def read_measurements(
    path: str | Path | Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    names: Sequence[str] = (),
    from_base: Sequence[str] = (),
    polarity: str = "negative",
    read_volts: float = 0.2,
    seed: int = 0,
    progress: Progress = lambda name, done: None,
) -> Measurements:
    """Read text, Parquet or NPZ files: a table of features, or I-V sweeps from which they are extracted.

    Values that can be read but not fitted become `faults` of the result. SETs and RESETs that failed are its `failures`
    and no part of `y`.

    Args:
        path: the file, a folder or several of them, which are one measurement.
        columns: names as memsim expects them -> names in the file; `file` and `row` stand for the name of the file and
            the number of the row.
        names: names of the columns in order, in place of those in a text file (see `Table`).
        from_base: features (`hrs`, `us`, `lrs`, `ur`) that the file need not have; with `cycles`, the numbers of cycles
            count for their order only, so that they may leave any gaps.
        polarity: `negative` if US < 0 < UR; `positive` if UR < 0 < US (voltages and currents change sign);
            `magnitude` if a feature table holds absolute values (US changes sign).
        read_volts: voltage at which the resistances were measured, or at which sweeps are read.
        seed: seed of the sample of sweeps that is kept.
        progress: called with a name and the fraction that is done.

    Raises:
        InputError: for a file that cannot be read, and for rows out of order.
    """
    if polarity not in POLARITIES:
        raise InputError(f"--polarity {polarity}: expected {', '.join(POLARITIES)}")
    tables = open_tables(path, names)
    layouts = [
        resolve(table.columns, str(table.path), columns, from_base, table.units, is_one_of_many=table.is_one_of_many)
        for table in tables
    ]
    source = _Source(tables, layouts, progress)
    where, layout = source.where, source.layout
    if polarity == "magnitude" and layout.kind == "sweeps":
        raise InputError(f"{where}: --polarity magnitude is for feature tables; sweeps have signs")
    if layout.kind == "sweeps" and set(from_base) & FEATURES.keys():
        raise InputError(f"{where}: --from-base is for feature tables; sweeps hold all four features")
    if layout.kind == "sweeps":
        read = _read_sweeps(source, polarity, read_volts, seed)
    else:
        read = _read_features(source, polarity, read_volts, is_ranked="cycles" in from_base)
    files = tuple(table.path for table in tables)
    return replace(
        read, files=files, notes=(*joint_notes(tables), *read.notes), how_read=(*joint_layouts(tables), *source.notes())
    )


class _Source:
    """The rows of one or several tables with the same quantities, in batches."""

    def __init__(self, tables: Sequence[Table], layouts: Sequence[Layout], progress: Progress) -> None:
        self.layout = layouts[0]
        self.where = tables[0].path if len(tables) == 1 else tables[0].path.parent
        self._tables, self._layouts, self._progress = tables, layouts, progress
        self._counted = _CountedCycles()
        for table, layout in zip(tables, layouts, strict=True):
            if (layout.kind, layout.columns.keys()) != (self.layout.kind, self.layout.columns.keys()):
                differing = ", ".join(sorted(layout.columns.keys() ^ self.layout.columns.keys()))
                raise InputError(f"{table.path}: differs from {tables[0].path} in {differing}; give files of one kind")

    def batches(self) -> Iterator[tuple[Batch, Layout, Path]]:
        """Yield all rows of the tables."""
        count = len(self._tables)
        for place, (table, layout) in enumerate(zip(self._tables, self._layouts, strict=True)):
            names = [column.name for column in layout.columns.values()]
            name = f"reading {table.path.name if count == 1 else self.where.name}"
            for batch in table.batches(names, text=[layout.columns["device"].name]):
                yield batch, layout, table.path
                self._progress(name, min((place + batch.done) / count, 0.999))
        self._progress(name, 1.0)

    def notes(self) -> list[str]:
        """Return remarks for people about columns that the files do not have."""
        if "cycle" in self.layout.columns:
            return []
        what = "each row is" if self.layout.kind == "features" else "each sweep from 0 V and back is"
        return [f"without a column of cycles, {what} a device's next cycle"]

    def keys(
        self, batch: Batch, layout: Layout, rows: CycleRows, path: Path, volts: Floats | None
    ) -> tuple[Ints, Ints]:
        """Return (device indices [n], cycle numbers [n]) of a batch; `volts` [n] are those of sweeps.

        Raises:
            InputError: if one is missing.
        """
        labels, codes = batch.labels(layout.columns["device"].name)
        if (codes < 0).any():
            row = batch.first_row + int(np.argmin(codes))
            raise InputError(
                f"{path}: row {row}: {layout.columns['device'].name} is empty; expected the name of a device"
            )
        devices = rows.device_indices(labels, codes)
        if "cycle" not in layout.columns:
            return devices, self._counted.cycles(devices, volts)
        name = layout.columns["cycle"].name
        cycles = batch.numbers(name)
        if (wrong := ~((np.abs(cycles) < _MOST_CYCLES) & (cycles == np.floor(cycles)))).any():
            at = int(np.argmax(wrong))
            raise InputError(f"{path}: row {batch.first_row + at}: {name} is {cycles[at]:g}; expected a whole number")
        return devices, cycles.astype(np.int64)


class _CountedCycles:
    """Numbers of cycles, from 1, of tables without them.

    Each row of features is a cycle. A sweep ends where the voltage falls from above to below zero.
    """

    def __init__(self) -> None:
        self._last: dict[int, int] = {}  # number of the last cycle of a device
        self._sign: dict[int, float] = {}  # of its last voltage that is not 0

    def cycles(self, devices: Ints, volts: Floats | None) -> Ints:
        result = np.empty(len(devices), np.int64)
        for device in np.unique(devices).tolist():
            rows = np.flatnonzero(devices == device)
            if volts is None:
                result[rows] = self._last.get(device, 0) + np.arange(1, len(rows) + 1)
            else:
                signs = np.sign(np.nan_to_num(volts[rows]))
                place = np.maximum.accumulate(np.where(signs != 0, np.arange(len(signs)), -1))
                held = np.where(place >= 0, signs[place], self._sign.get(device, 0.0))
                before = np.concatenate([[self._sign.get(device, 0.0)], held[:-1]])
                result[rows] = self._last.get(device, 1) + np.cumsum((before > 0) & (held < 0))
                self._sign[device] = float(held[-1])
            self._last[device] = int(result[rows[-1]])
        return result


def require_volts(flag: str, volts: float | None) -> None:
    """Raise InputError, naming `flag`, unless `volts` is a possible voltage above 0, or None."""
    if volts is not None and not 0 < volts < 100:
        raise InputError(f"{flag} {volts:g}: expected a voltage above 0")


def _read_features(source: _Source, polarity: str, read_volts: float, *, is_ranked: bool) -> Measurements:
    present = [key for key in FEATURES if key in source.layout.columns]
    rows, faults, count = CycleRows(str(source.where), len(present)), dict[str, Fault](), 0
    for batch, layout, path in source.batches():
        devices, cycles = source.keys(batch, layout, rows, path, None)
        numbers = batch.first_row + np.arange(len(batch))
        values = np.empty((len(present), len(batch)))
        for key, out in zip(present, values, strict=True):
            column = layout.columns[key]
            out[:] = column.convert(batch.numbers(column.name))
            if key in ("us", "ur"):
                out *= _signs(polarity)[key]
            else:
                out[np.isinf(out)] = np.nan  # an open circuit
            _note_fault(faults, key, column.name, out, numbers, polarity)
            if key == "hrs":
                with np.errstate(divide="ignore", invalid="ignore"):
                    np.log10(out, out=out)
                out[~np.isfinite(out)] = np.nan
        rows.add(devices, cycles, values, numbers)
        count += len(batch)
    grid = rows.grid(is_ranked=is_ranked)
    y = np.full((len(FEATURES), *grid.values.shape[1:]), np.nan, dtype=np.float32)
    y[[list(FEATURES).index(key) for key in present]] = grid.values
    y, failures = split_failures(y)
    at = grid.devices, grid.first_cycles
    found = tuple(faults.values())
    return Measurements(source.where, source.layout, count, *at, y, read_volts, found, failures=failures)


def _read_sweeps(source: _Source, polarity: str, read_volts: float, seed: int) -> Measurements:
    reader = SweepReader(str(source.where), read_volts, seed)
    sign, count = _signs(polarity)["ur"], 0
    for batch, layout, path in source.batches():
        columns = layout.columns
        volts, amperes = (columns[key].convert(batch.numbers(columns[key].name)) for key in _SAMPLE)
        seconds = columns["time"].convert(batch.numbers(columns["time"].name)) if "time" in columns else None
        devices, cycles = source.keys(batch, layout, reader.rows, path, sign * volts)
        reader.add(devices, cycles, sign * volts, sign * amperes, seconds, batch.first_row)
        count += len(batch)
    grid, candidates, traces, outcomes = reader.finish()
    y, failures = split_failures(grid.values, candidates)
    at = grid.devices, grid.first_cycles
    return Measurements(
        source.where,
        source.layout,
        count,
        *at,
        y,
        read_volts,
        traces=traces,
        outcomes=outcomes,
        failures=failures,
        notes=tuple(reader.notes()),
    )


_SAMPLE = ("voltage", "current")
_MOST_CYCLES = 2.0**53
"""Largest range of whole numbers that floats represent exactly."""


def _signs(polarity: str) -> dict[str, float]:
    """Return the factors of US and UR; sweeps are multiplied by the factor of UR."""
    return {"us": 1.0 if polarity == "negative" else -1.0, "ur": -1.0 if polarity == "positive" else 1.0}


def _note_fault(faults: dict[str, Fault], key: str, column: str, values: Floats, rows: Ints, polarity: str) -> None:
    """Add the values of the wrong sign to `faults`, which has an entry for each column with such values."""
    wrong = values >= 0 if key == "us" else values <= 0  # NaN is neither
    if not wrong.any():
        return
    at = int(np.argmax(wrong))
    value = float(values[at] * _signs(polarity).get(key, 1.0))
    first = faults.get(key) or Fault(int(rows[at]), column, value, _remedy(key, polarity), 0)
    faults[key] = replace(first, count=first.count + int(wrong.sum()))


def _remedy(key: str, polarity: str) -> str:
    if key in ("hrs", "lrs"):
        return "a resistance is positive"
    expected = {"negative": "US < 0 < UR", "positive": "UR < 0 < US", "magnitude": "both to be positive"}[polarity]
    others = " or ".join(f"--polarity {other}" for other in POLARITIES if other != polarity)
    return f"--polarity {polarity} expects {expected} (there is also {others})"
