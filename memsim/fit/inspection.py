"""The call behind `memsim fit-device --inspect`: counts, columns, gaps and quantiles of a file of measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from memsim.arguments import require_types
from memsim.device.cycles.model import HRS
from memsim.errors import InputError
from memsim.fit.base import load_base
from memsim.fit.columns import CYCLES, FEATURES, parse_features, parse_names, parse_renames
from memsim.fit.fit_tables import inspection_parts
from memsim.fit.levels.fit import read_levels
from memsim.fit.levels.inspection import LevelsInspection
from memsim.fit.levels.tables import levels_kind
from memsim.fit.measurements import NAMES, Measurements, read_measurements, require_volts
from memsim.listener import Listener
from memsim.report.text import as_html, as_text

QUANTILES = (0.01, 0.5, 0.99)


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """The facts about a file of measurements, and the measurements themselves.

    `print(inspection)` shows the table that `memsim fit-device --inspect` prints.

    >>> inspection = memsim.inspect_measurements("cycles.csv")
    >>> inspection.measurements.y.shape  # [features, devices, cycles]
    (4, 16, 20)

    Attributes:
        measurements: the measurements, which `memsim.fit_device` takes, too.
    """

    measurements: Measurements
    _facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain values: what `memsim fit-device --inspect --json` writes."""
        return self._facts

    def as_rich(self) -> tuple[RenderableType, ...]:
        """Return what the command prints, as parts for a console of `rich`; the first is the heading."""
        return inspection_parts(self._facts)

    def __str__(self) -> str:
        return as_text(*self.as_rich())

    def __repr__(self) -> str:
        return f"Inspection({self.as_rich()[0]})"

    def _repr_html_(self) -> str:
        return as_html(*self.as_rich())


def inspect_measurements(
    measurements: str | Path | Sequence[str | Path],
    *,
    base: str | Path = "synaptogen",
    column: Mapping[str, str] | Sequence[str] | str = (),
    columns: Sequence[str] | str = (),
    polarity: str = "negative",
    from_base: Sequence[str] | str = (),
    read_volts: float | None = None,
    temperature_kelvin: float | None = None,
    seed: int = 0,
    listener: Listener | None = None,
) -> Inspection | LevelsInspection:
    """Read a file of measurements and return the facts about it, without a fit.

    >>> inspection = memsim.inspect_measurements("cycles.csv")
    >>> print(inspection.to_dict()["rows"], inspection.to_dict()["features"]["LRS"]["column"])
    320 lrs_ohms

    The result's `measurements` can be given to `memsim.fit_device`, so that the file is read once.

    Args:
        measurements: a text, Parquet or NPZ file, a folder or several of them: a table of features, samples of I-V
            sweeps, or a table of levels.
        base: the device model whose read voltage is the default of `read_volts`.
        column: names of columns as memsim expects them -> their names in the file; or strings `NAME=THEIRS`.
        columns: names of all columns in order, for a file without them.
        polarity: `negative` if US < 0 < UR in the file; `positive` if UR < 0 < US; `magnitude` for absolute values.
        from_base: features (`hrs`, `us`, `lrs`, `ur`) that were not measured, or `cycles`.
        read_volts: the voltage at which resistances were measured, or at which sweeps are read.
        temperature_kelvin: the temperature whose rows of a table of levels are taken, where there are several.
        seed: seed of the sample of sweeps that is kept.
        listener: shows progress; by default nothing is shown.

    Raises:
        InputError: for a file that cannot be read, in one line that names the row or column and the remedy.
    """
    require_types(inspect_measurements, locals())
    listener = listener or Listener()
    names, renamed = parse_names(columns), parse_renames(column)
    with listener.working():
        if kind := levels_kind(measurements, names, renamed):
            return LevelsInspection(read_levels(measurements, kind, names, renamed, temperature_kelvin))
        found = load_measurements(
            measurements, base, column, columns, polarity, from_base, read_volts, seed=seed, listener=listener
        )
    return Inspection(found, _facts_of(found))


def load_measurements(
    measurements: str | Path | Sequence[str | Path] | Measurements,
    base: str | Path,
    column: Mapping[str, str] | Sequence[str] | str,
    columns: Sequence[str] | str,
    polarity: str,
    from_base: Sequence[str] | str,
    read_volts: float | None,
    *,
    seed: int,
    listener: Listener,
) -> Measurements:
    """Read `measurements` under the options of `inspect_measurements`; pass measurements that are loaded through.

    Raises:
        InputError: for a wrong option, before anything is read; for options of reading where nothing is to be read.
    """
    if isinstance(measurements, Measurements):
        if (
            column
            or columns
            or set(parse_features(from_base)) - {CYCLES}
            or polarity != "negative"
            or read_volts is not None
        ):
            raise InputError(
                "--column, --columns, --polarity, --from-base and --read-volts say how a file is read, but these "
                "measurements are loaded already; leave them out"
            )
        return measurements
    renamed, unmeasured = parse_renames(column), parse_features(from_base)
    require_volts("--read-volts", read_volts)
    return read_measurements(
        measurements,
        columns=renamed,
        names=parse_names(columns),
        from_base=unmeasured,
        polarity=polarity,
        read_volts=load_base(base).reference_volts if read_volts is None else read_volts,
        seed=seed,
        progress=listener.progress,
    )


def _facts_of(measurements: Measurements) -> dict[str, Any]:
    """Return counts, columns, gaps, quantiles (HRS in ohm) and the values that a fit would refuse."""
    columns, units = measurements.layout.columns, ("ohm", "V", "ohm", "V")
    keys = list(FEATURES)
    counts = measurements.counts[list(measurements.measured)]
    longest = counts.max(axis=0, initial=0)
    is_cycle = np.asarray(np.isfinite(measurements.y).any(axis=0))  # [devices, cycles]
    spans = is_cycle.shape[1] - is_cycle[:, ::-1].argmax(axis=1) - is_cycle.argmax(axis=1)
    facts: dict[str, Any] = {
        "file": measurements.path.name,
        "kind": measurements.layout.kind,
        "rows": measurements.rows,
        "devices": len(measurements.devices),
        "cycles_a_device": {
            "min": int(longest.min()),
            "median": float(np.median(longest)),
            "max": int(longest.max()),
        },
        "columns": {quantity: column.name for quantity, column in columns.items()},
        "unused_columns": list(measurements.layout.unused),
        "read_volts": measurements.read_volts,
        "features": {},
        "refused": [str(fault) for fault in measurements.faults],
        "how_read": list(measurements.how_read),
        "notes": [*measurements.notes, *(measurements.failures.notes() if measurements.failures else [])],
    }
    for i in measurements.measured:
        present = measurements.y[i][np.isfinite(measurements.y[i])]
        quantiles = np.quantile(present, QUANTILES).astype(float) if len(present) else np.full(3, np.nan)
        column = columns.get(keys[i])
        facts["features"][NAMES[i]] = {
            "column": column.name if column else "extracted",
            "unit": units[i],
            "factor": column.unit.description if column else 1.0,
            "missing": 1 - len(present) / max(int(spans.sum()), 1),
            "quantiles": (10**quantiles if i == HRS else quantiles).tolist(),
        }
    if measurements.traces is not None:
        facts["sweeps"] = {"outcomes": dict(measurements.outcomes)}
        if len(measurements.traces):
            volts = measurements.traces.volts
            facts["sweeps"] |= {
                "samples_a_cycle": float(np.median(np.isfinite(volts).sum(axis=1))),
                "lowest_volts": float(np.nanmin(volts)),
                "highest_volts": float(np.nanmax(volts)),
            }
    return facts
