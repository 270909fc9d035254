"""The facts about a table of levels, without a fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from memsim.fit.arrays import Floats
from memsim.fit.levels.report import KINDS
from memsim.fit.levels.tables import Readings, Summary
from memsim.report.text import as_html, as_text
from memsim.units import counted

QUANTILES = (0.01, 0.5, 0.99)


@dataclass(frozen=True, eq=False, repr=False)
class LevelsInspection:
    """The facts about a table of levels: its columns, and conductances by time.

    `print(inspection)` shows the table that `memsim fit-device --inspect` prints.

    Attributes:
        measurements: the table.
    """

    measurements: Readings | Summary

    @property
    def kind(self) -> str:
        """`readings`, `summary` or `pulses`."""
        return "readings" if isinstance(self.measurements, Readings) else self.measurements.kind

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain values: what `memsim fit-device --inspect --json` writes."""
        source = self.measurements.source
        return {
            "files": [str(file) for file in source.files],
            "kind": self.kind,
            "rows": source.rows,
            "columns": dict(source.columns),
            "unused_columns": list(source.unused),
            "times": [
                {"seconds": seconds, "values": len(values), "microsiemens": np.quantile(values, QUANTILES).tolist()}
                for seconds, values in self._by_time()
            ],
            "notes": list(source.notes),
        }

    def _by_time(self) -> list[tuple[float, Floats]]:
        found = self.measurements
        if isinstance(found, Summary):
            return [(float(t), mean) for t, mean in zip(found.seconds, found.mean, strict=True)]
        changes = found.changes
        later = [(float(t), changes.now[changes.group == k]) for k, t in enumerate(found.group_seconds)]
        return [(found.start_seconds, found.start), *later]

    def as_rich(self) -> tuple[RenderableType, ...]:
        """Return what the command prints, as parts for a console of `rich`; the first is the heading."""
        source, found = self.measurements.source, self.measurements
        what = counted(len(found.start), "cell") if isinstance(found, Readings) else f"{len(found.targets)} targets"
        table = Table()
        for name in ("time (s)", "readings" if self.kind == "readings" else "targets", "1 % (µS)", "median", "99 %"):
            table.add_column(name, justify="right")
        for seconds, values in self._by_time():
            quantiles = (f"{value:.4g}" for value in np.quantile(values, QUANTILES))
            table.add_row(f"{seconds:.4g}", f"{len(values):,}", *quantiles)
        lines = [f"columns: {', '.join(f'{q} from {name}' for q, name in source.columns.items())}"]
        if source.unused:
            lines.append(f"not used: {', '.join(source.unused)}")
        heading = f"{source.name}: {KINDS[self.kind]}, {counted(source.rows, 'row')}, {what}"
        return heading, table, "\n".join([*lines, *source.notes])

    def __str__(self) -> str:
        return as_text(*self.as_rich())

    def __repr__(self) -> str:
        return f"LevelsInspection({self.as_rich()[0]})"

    def _repr_html_(self) -> str:
        return as_html(*self.as_rich())
