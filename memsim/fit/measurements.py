"""Measurements of many cycles of many devices, as a dense array of the model's four features.

A file is read in batches. One float32 for each feature, device and cycle stays in memory, and a sample of the sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from memsim.errors import InputError
from memsim.fit.arrays import Floats, Ints
from memsim.fit.columns import FEATURES, Layout, resolve
from memsim.fit.cycle_grid import CycleRows
from memsim.fit.sweeps import SweepReader, Traces
from memsim.fit.tables import Batch, Table
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

    path: Path
    layout: Layout
    rows: int  # number of rows in the file
    devices: tuple[str, ...]
    first_cycles: Ints  # [devices] number of the cycle at index 0
    y: Floats  # [4, devices, cycles]: HRS (log10 ohm), US (V), LRS (ohm), UR (V); NaN in gaps
    read_volts: float  # voltage at which the resistances were measured
    faults: tuple[Fault, ...] = ()
    traces: Traces | None = None  # a sample of the cycles, if the file holds sweeps
    outcomes: Mapping[str, int] = field(default_factory=dict)  # outcome of a sweep -> number of cycles

    @property
    def measured(self) -> tuple[int, ...]:
        """The features in the file, as indices into NAMES."""
        return tuple(i for i, key in enumerate(FEATURES) if self.layout.kind == "sweeps" or key in self.layout.columns)

    @cached_property
    def counts(self) -> Ints:
        """[4, devices] number of cycles in which each feature was measured."""
        return np.asarray(np.isfinite(self.y).sum(axis=2))

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, in hex."""
        return file_sha256(self.path)


def read_measurements(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    from_base: Sequence[str] = (),
    polarity: str = "negative",
    read_volts: float = 0.2,
    seed: int = 0,
    progress: Progress = lambda name, done: None,
) -> Measurements:
    """Read a CSV, Parquet or NPZ file: a table of features, or I-V sweeps from which they are extracted.

    Values that can be read but not fitted become `faults` of the result.

    Args:
        path: the file.
        columns: names as memsim expects them -> names in the file.
        from_base: features (`hrs`, `us`, `lrs`, `ur`) that the file need not have.
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
    table = Table(path)
    layout = resolve(table.columns, str(path), columns, from_base)
    if polarity == "magnitude" and layout.kind == "sweeps":
        raise InputError(f"{path}: --polarity magnitude is for feature tables; sweeps have signs")
    if layout.kind == "sweeps" and from_base:
        raise InputError(f"{path}: --from-base is for feature tables; sweeps hold all four features")
    if layout.kind == "sweeps":
        return _read_sweeps(table, layout, polarity, read_volts, seed, progress)
    return _read_features(table, layout, polarity, read_volts, progress)


def require_volts(flag: str, volts: float | None) -> None:
    """Raise InputError, naming `flag`, unless `volts` is a possible voltage above 0, or None."""
    if volts is not None and not 0 < volts < 100:
        raise InputError(f"{flag} {volts:g}: expected a voltage above 0")


def _read_features(table: Table, layout: Layout, polarity: str, read_volts: float, progress: Progress) -> Measurements:
    present = [key for key in FEATURES if key in layout.columns]
    rows, faults, count = CycleRows(str(table.path), len(present)), dict[str, Fault](), 0
    for batch in _batches(table, layout, progress):
        devices, cycles = _keys(batch, layout, rows, table.path)
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
    grid = rows.grid()
    y = np.full((len(FEATURES), *grid.values.shape[1:]), np.nan, dtype=np.float32)
    y[[list(FEATURES).index(key) for key in present]] = grid.values
    found = tuple(faults.values())
    return Measurements(table.path, layout, count, grid.devices, grid.first_cycles, y, read_volts, found)


def _read_sweeps(
    table: Table, layout: Layout, polarity: str, read_volts: float, seed: int, progress: Progress
) -> Measurements:
    reader = SweepReader(str(table.path), read_volts, seed)
    sign, count = _signs(polarity)["ur"], 0
    for batch in _batches(table, layout, progress):
        devices, cycles = _keys(batch, layout, reader.rows, table.path)
        volts, amperes = (layout.columns[key].convert(batch.numbers(layout.columns[key].name)) for key in _SAMPLE)
        seconds = batch.numbers(layout.columns["time"].name) if "time" in layout.columns else None
        reader.add(devices, cycles, sign * volts, sign * amperes, seconds, batch.first_row)
        count += len(batch)
    grid, traces, outcomes = reader.finish()
    at = grid.devices, grid.first_cycles
    return Measurements(table.path, layout, count, *at, grid.values, read_volts, traces=traces, outcomes=outcomes)


_SAMPLE = ("voltage", "current")


def _batches(table: Table, layout: Layout, progress: Progress) -> Iterator[Batch]:
    names = [column.name for column in layout.columns.values()]
    for batch in table.batches(names, text=[layout.columns["device"].name]):
        yield batch
        progress(f"reading {table.path.name}", min(batch.done, 0.999))
    progress(f"reading {table.path.name}", 1.0)


_MOST_CYCLES = 2.0**53
"""Largest range of whole numbers that floats represent exactly."""


def _keys(batch: Batch, layout: Layout, rows: CycleRows, path: Path) -> tuple[Ints, Ints]:
    """Return (device indices [n], cycle numbers [n]) of a batch. Raises InputError if one is missing."""
    name = layout.columns["cycle"].name
    cycles = batch.numbers(name)
    if (wrong := ~((np.abs(cycles) < _MOST_CYCLES) & (cycles == np.floor(cycles)))).any():
        at = int(np.argmax(wrong))
        raise InputError(f"{path}: row {batch.first_row + at}: {name} is {cycles[at]:g}; expected a whole number")
    labels, codes = batch.labels(layout.columns["device"].name)
    if (codes < 0).any():
        row = batch.first_row + int(np.argmin(codes))
        raise InputError(f"{path}: row {row}: {layout.columns['device'].name} is empty; expected the name of a device")
    return rows.device_indices(labels, codes), cycles.astype(np.int64)


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
