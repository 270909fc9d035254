"""The call behind `memsim fit-device` for tables of levels: a device of kind `levels`, checked and saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from memsim.device.levels.device import LevelsDevice
from memsim.device.levels.file import device_of
from memsim.errors import InputError
from memsim.fit.goodness import Check
from memsim.fit.levels import report
from memsim.fit.levels.changes import Changes
from memsim.fit.levels.device import EXTRAPOLATED_DECADES, device_yaml, programming_section, rounded, time_sections
from memsim.fit.levels.fitting import Choice
from memsim.fit.levels.goodness import CellPath, Judged, LevelTimes, judge, path_of
from memsim.fit.levels.pulses import read_pulses
from memsim.fit.levels.summary import WORDS, fit_summary
from memsim.fit.levels.tables import Readings, Source, Summary, read_readings, read_summary
from memsim.listener import Listener
from memsim.report.text import as_html, as_text
from memsim.storage.outputs import require_outputs, write_text
from memsim.version import __version__

YAML = (".yaml", ".yml")
"""The endings of files of devices of kind levels."""


@dataclass(frozen=True, eq=False, repr=False)
class LevelsFit:
    """A device of kind `levels` fitted to a table of levels, and how well it describes held-out readings.

    `print(result)` shows the table that `memsim fit-device` prints.

    Attributes:
        name: name of the device.
        kind: `readings` of cells, a `summary` by target, or `pulses`.
        source: the files and how they were read.
        document: the keys of the device file.
        checks: of laws fitted without the readings that they are compared with.
        laws: law -> how it was chosen, and the law itself, as plain values.
        choices: law -> the kinds that were tried; empty for others than readings.
        tables: law -> distributions by level and time, measured and of the law; empty for others than readings.
        path: how a cell's changes at two times go together; None if that was not measured.
        extrapolated: what the device says beyond what was measured, and what was not measured.
        notes: further remarks.
        files: the files that the call wrote.
    """

    name: str
    kind: str
    source: Source
    document: dict[str, Any]
    checks: tuple[Check, ...]
    laws: Mapping[str, dict[str, Any]]
    choices: Mapping[str, Choice]
    tables: Mapping[str, LevelTimes]
    path: CellPath | None
    extrapolated: tuple[str, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...] = ()

    @property
    def device(self) -> LevelsDevice:
        """The fitted device."""
        return device_of(self.document, self.name)

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.verdict == "warn")

    def to_dict(self) -> dict[str, Any]:
        """Return the fit and its checks as plain values: what `memsim fit-device --json` writes."""
        return {
            "memsim": __version__,
            "device": {"name": self.name, "kind": "levels"},
            "table": {
                "kind": self.kind,
                "files": [str(file) for file in self.source.files],
                "rows": self.source.rows,
                "columns": dict(self.source.columns),
                "sha256": self.source.sha256,
            },
            "laws": dict(self.laws),
            "path": None if self.path is None else dataclasses.asdict(self.path),
            "goodness": {
                "checks": [dataclasses.asdict(check) | {"verdict": check.verdict} for check in self.checks],
                "warnings": len(self.warnings),
                "tables": {name: table.to_dict() for name, table in self.tables.items()},
            },
            "extrapolated": list(self.extrapolated),
            "notes": list(self.notes),
        }

    def write_report(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write `report.html` and `report.json` into `folder`, which is made if it does not exist.

        Returns:
            The path of the page.

        Raises:
            InputError: if they exist already, unless `force`, or cannot be written.
        """
        return report.write_report(Path(folder), self, force)

    def save(self, path: str | Path, *, force: bool = False) -> tuple[Path, ...]:
        """Write the device file to `path` (.yaml), under the file's name, and return the path.

        Raises:
            InputError: if it exists already, unless `force`, or cannot be written.
        """
        file = planned_file(path)
        require_outputs([file], force, self.source.files)
        remarks = [f"Fitted by memsim {__version__}; memsim fit-device has the checks.", *self.extrapolated]
        write_text(file, device_yaml({**self.document, "name": file.stem}, remarks))
        return (file,)

    def as_rich(self, *, every_check: bool = False) -> tuple[RenderableType, ...]:
        """Return what the command prints, as parts for a console of `rich`: heading, table of checks, summary."""
        return report.parts(self, every_check=every_check)

    def __str__(self) -> str:
        return as_text(*self.as_rich())

    def __repr__(self) -> str:
        return f"LevelsFit({report.heading_of(self)})"

    def _repr_html_(self) -> str:
        return as_html(*self.as_rich())


def planned_file(out: str | Path) -> Path:
    """Return the path of a device file of levels. Raises InputError if it does not end in .yaml."""
    path = Path(out)
    if path.suffix not in YAML:
        raise InputError(f"{out}: a table of levels makes a device file in YAML; name it {path.with_suffix('.yaml')}")
    return path


def read_levels(
    paths: str | Path | Sequence[str | Path],
    kind: str,
    columns: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    temperature_kelvin: float | None = None,
) -> Readings | Summary:
    """Read a table of levels of `kind` (see `tables.levels_kind`). Raises InputError, in one line."""
    read = {"summary": read_summary, "pulses": read_pulses}.get(kind, read_readings)
    return read(paths, columns, renamed, temperature_kelvin)


def fit_levels(
    paths: str | Path | Sequence[str | Path],
    kind: str,
    out: str | Path | None = None,
    *,
    columns: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    temperature_kelvin: float | None = None,
    read_volts: float | None = None,
    seed: int = 0,
    force: bool = False,
    listener: Listener | None = None,
) -> LevelsFit:
    """Fit a device of kind `levels` to a table, check it on what was held out, and write it.

    Args:
        paths: the files.
        kind: `readings`, `summary` or `pulses` (see `tables.levels_kind`).
        out: the device file to write (.yaml); by default nothing is written.
        columns: names of the columns in order, for files without names.
        renamed: names of columns as memsim expects them -> their names in the file.
        temperature_kelvin: the temperature whose rows are taken, where there are several.
        read_volts: the voltage at which conductances were measured; by default 0.2 V.
        seed: seed of the halves of the cells and of all that is drawn.
        force: whether to overwrite files that exist.
        listener: shows progress; by default nothing is shown.

    Raises:
        InputError: in one line, for tables that make no device.
    """
    listener = listener or Listener()
    file = None if out is None else planned_file(out)
    first = paths if isinstance(paths, str | Path) else paths[0]
    require_outputs([file], force, [paths] if isinstance(paths, str | Path) else paths)
    name = file.stem if file is not None else Path(first).name.split(".")[0]
    with listener.working():
        table = read_levels(paths, kind, columns, renamed, temperature_kelvin)
        result = _of_summary(table, name) if isinstance(table, Summary) else _of_readings(table, name, seed, listener)
    if read_volts is not None:
        result = dataclasses.replace(result, document=result.document | {"reference_volts": read_volts})
    result.device  # noqa: B018  a file that could not be read back is not written
    if file is not None:
        result = dataclasses.replace(result, files=result.save(file, force=force))
    return result


def _of_readings(readings: Readings, name: str, seed: int, listener: Listener) -> LevelsFit:
    judged: dict[str, Judged] = {}
    if len(readings.changes):
        judged["relaxation"] = judge(
            readings.changes,
            readings.group_seconds,
            seed,
            "relaxation",
            lambda done: listener.progress("fitting relaxation", done),
        )
    if readings.target is not None and (errors := _errors(readings)) is not None:
        judged["programming"] = judge(
            errors,
            np.array([1.0]),
            seed,
            "programming",
            lambda done: listener.progress("fitting programming", done),
            relative=False,
        )
    if not judged:
        raise InputError(
            f"{readings.source.path}: holds one time and no target; levels need several times, or the column "
            "target_microsiemens"
        )
    sections: dict[str, Any] = {}
    path = None
    if "programming" in judged:
        sections |= {"programming": programming_section(judged["programming"].law)}
    if "relaxation" in judged:
        law = judged["relaxation"].law
        path = path_of(law, readings.changes, readings.group_seconds, readings.start_seconds)
        sections |= time_sections(law, path, readings.start_seconds, float(readings.group_seconds[-1]))
    all_values = np.concatenate([readings.start, readings.changes.now])
    aims = readings.start if readings.target is None else readings.target[np.isfinite(readings.target)]
    low, high = np.quantile(aims, [0.01, 0.99]) if readings.target is None else (aims.min(), aims.max())
    document = _document(name, readings.source, low, high, float(all_values.max()), sections)
    laws: dict[str, dict[str, Any]] = {}
    for key, own in judged.items():
        words = str(own.choice.form) if key == "relaxation" else own.choice.form.words
        laws[key] = {"law": words, "knots": len(own.law.knots)} | own.law.to_dict()
    notes = [*readings.source.notes]
    if path is not None:
        notes.append(_path_note(path))
    return LevelsFit(
        name,
        "readings",
        readings.source,
        document,
        tuple(check for own in judged.values() for check in own.checks),
        laws,
        {key: own.choice for key, own in judged.items()},
        {key: own.tables for key, own in judged.items()},
        path,
        tuple(_extrapolated(readings, judged)),
        tuple(notes),
    )


def _errors(readings: Readings) -> Changes | None:
    """Return the programming errors as changes from the target to the start; None where no cell has a target."""
    assert readings.target is not None
    known = np.flatnonzero(np.isfinite(readings.target))
    if not len(known):
        return None
    n = len(known)
    return Changes(known, readings.target[known], np.ones(n), readings.start[known], np.zeros(n, dtype=int), 1.0)


def _of_summary(summary: Summary, name: str) -> LevelsFit:
    fitted = fit_summary(summary)
    ceiling = float((summary.mean + 4 * summary.deviation).max())
    document = _document(name, summary.source, summary.targets[0], summary.targets[-1], ceiling, fitted.sections)
    laws = {"programming": {"law": "table by target, normal"}}
    lines = [*fitted.notes]
    if "relaxation" in fitted.sections:
        mean, spread = (WORDS[kind] for kind in fitted.kinds)
        laws["relaxation"] = {"law": f"table by target and time, normal; beyond it mean {mean}, spread {spread}"}
        last = summary.seconds[-1] - summary.seconds[0]
        lines.append(_beyond_note(last))
    extrapolated = (*lines, _NO_READ_NOISE, _NO_CURRENT)
    source = summary.source
    return LevelsFit(
        name, summary.kind, source, document, fitted.checks, laws, {}, {}, None, extrapolated, source.notes
    )


def _document(
    name: str, source: Source, low: float, high: float, largest: float, sections: Mapping[str, Any]
) -> dict[str, Any]:
    low, high = max(rounded(low), 0.0), rounded(high)
    if low >= high:
        raise InputError(f"{source.path}: all cells have one level, {high:g} uS; a device of levels needs two or more")
    return {
        "kind": "levels",
        "name": name,
        "source": f"fitted by memsim {__version__} to {source.name} (sha256 {source.sha256[:16]})",
        "microsiemens": {"low": low, "high": high},
        "ceiling_microsiemens": rounded(max(largest, high)),
        **sections,
    }


_NO_READ_NOISE = "white noise of reads: not told apart from relaxation before the first time, and part of it"
_NO_CURRENT = "currents at other voltages: not measured, taken as ohmic"


def _beyond_note(last: float) -> str:
    return (
        f"times beyond {last:.4g} s after the start: laws go on, in tables to {last * 10**EXTRAPOLATED_DECADES:.2g} s "
        "and in lines over ln t from there"
    )


def _extrapolated(readings: Readings, judged: Mapping[str, Judged]) -> list[str]:
    lines = []
    if "relaxation" in judged:
        law, start = judged["relaxation"].law, readings.start_seconds
        lines.append(_beyond_note(float(readings.group_seconds[-1]) - start))
        if start > 0:
            lines.append(f"the clock of the device starts at the first readings, {start:.4g} s after programming")
        else:
            lines.append(f"times before {law.first_seconds:.3g} s: as at that time")
        low, high = float(law.knots[0]), float(law.knots[-1])
        if high > low:
            lines.append(f"conductances below {low:.3g} and above {high:.3g} µS: as at those")
        else:
            lines.append("one law for all conductances: too few cells to tell them apart")
    else:
        lines.append("relaxation and drift: one time was measured; conductances stay as programmed")
    if "programming" not in judged:
        lines.append("programming error: no target was given; cells take their targets exactly")
    return [*lines, _NO_READ_NOISE, _NO_CURRENT]


def _path_note(path: CellPath) -> str:
    meaning = {
        "frozen": "a cell's change at one time tells that at another: one deviation of each cell for all times",
        "increments": "changes of a cell add up independently in log time",
        "redrawn": "a cell's change at one time tells nothing about that at another",
    }
    return f"{meaning[path.kind]} (path: {path.kind})"
