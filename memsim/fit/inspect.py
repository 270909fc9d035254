"""What a file of measurements holds, before anything is fitted."""

from __future__ import annotations

from typing import Any

import numpy as np

from memsim.device.model import HRS
from memsim.fit.columns import FEATURES
from memsim.fit.measurements import NAMES, Measurements

QUANTILES = (0.01, 0.5, 0.99)


def inspect(measurements: Measurements) -> dict[str, Any]:
    """Facts, as plain values: counts, columns, gaps, quantiles (HRS in ohm) and what a fit would refuse."""
    columns, units = measurements.layout.columns, ("ohm", "V", "ohm", "V")
    keys = list(FEATURES)
    counts = measurements.counts[list(measurements.measured)]
    longest = counts.max(axis=0, initial=0)
    is_cycle = np.asarray(np.isfinite(measurements.y).any(axis=0))  # (devices, cycles)
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
    }
    for i in measurements.measured:
        present = measurements.y[i][np.isfinite(measurements.y[i])]
        quantiles = np.quantile(present, QUANTILES).astype(float) if len(present) else np.full(3, np.nan)
        key = keys[i]
        factor = columns[key].factor if key in columns else 1.0
        facts["features"][NAMES[i]] = {
            "column": columns[key].name if key in columns else "extracted",
            "unit": units[i],
            "factor": "10 ** value" if key in columns and columns[key].is_log10 else factor,
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
