"""The call behind `memsim fit-device`: a device model fitted to measurements, checked and saved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from memsim.arguments import require_types
from memsim.device import DeviceModel, save_device
from memsim.device.cycles.file import summarise, summary_yaml
from memsim.errors import InputError
from memsim.fit import fit_report
from memsim.fit.columns import CYCLES, parse_features, parse_names, parse_renames
from memsim.fit.fit import Fit, FitOptions, fit_model
from memsim.fit.fit_report import require_folder as require_folder
from memsim.fit.fit_tables import fit_heading, fit_parts, summary
from memsim.fit.goodness import Goodness, judge
from memsim.fit.inspection import inspect_measurements as inspect_measurements
from memsim.fit.inspection import load_measurements
from memsim.fit.levels.fit import YAML, LevelsFit, fit_levels
from memsim.fit.levels.tables import levels_kind
from memsim.fit.measurements import Measurements, require_volts
from memsim.listener import Listener
from memsim.report.text import as_html, as_text
from memsim.storage.outputs import require_outputs, require_safetensors, write_text

MOST = 50
"""The highest order of the cycle-to-cycle process, and the largest number of components, that can be asked for."""


@dataclass(frozen=True, eq=False, repr=False)
class DeviceFit:
    """A device model fitted to measurements, and how well it describes them.

    `print(result)` shows the table that `memsim fit-device` prints.

    >>> result = memsim.fit_device("cycles.csv", order=1)
    >>> result.model.order
    1
    >>> result.save("mine.safetensors")[0].name
    'mine.safetensors'

    Attributes:
        fit: the fitted model with its mixture, envelopes, information criteria and notes.
        goodness: the checks of cells drawn from the model against the measurements.
        measurements: the measurements that the model was fitted to.
        files: the files that the call wrote.
    """

    fit: Fit
    goodness: Goodness
    measurements: Measurements
    files: tuple[Path, ...] = ()

    @property
    def model(self) -> DeviceModel:
        """The fitted device model."""
        return self.fit.model

    def to_dict(self) -> dict[str, Any]:
        """Return the fit and its checks as plain values: what `memsim fit-device --json` writes."""
        return fit_report.to_dict(self.fit, self.goodness, self.measurements)

    def write_report(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write `report.html` and `report.json` into `folder`, which is made if it does not exist.

        Returns:
            The path of the page.

        Raises:
            InputError: if they exist already, unless `force`, or cannot be written.
        """
        fit_report.require_folder(Path(folder), force)
        return fit_report.write_report(Path(folder), self.fit, self.goodness, self.measurements)

    def save(self, path: str | Path, *, yaml: bool = False, force: bool = False) -> tuple[Path, ...]:
        """Write the device model to `path` (.safetensors), under the file's name.

        Args:
            path: the file, which `cell` in a hardware spec and `--cell` take.
            yaml: whether to write the numbers as YAML beside it, too.
            force: whether to overwrite files that exist.

        Returns:
            The paths of the files written.

        Raises:
            InputError: if a file exists already, unless `force`, or cannot be written.
        """
        files = planned_files(path, yaml)
        require_outputs(files, force, _sources(self.measurements))
        self._write(files)
        return files

    def _write(self, files: tuple[Path, ...]) -> None:
        device_file, *yaml_files = files
        name = device_file.stem
        named = dataclasses.replace(
            self.fit,
            model=dataclasses.replace(self.model, name=name),
            options=dataclasses.replace(self.fit.options, name=name),
        )
        facts = named.facts(self.measurements)
        save_device(named.model, device_file, {"fit": json.dumps(facts)})
        for yaml_file in yaml_files:
            write_text(yaml_file, summary_yaml(summarise(named.model) | {"fit": facts}))

    def as_rich(self, *, every_check: bool = False) -> tuple[RenderableType, ...]:
        """Return what the command prints, as parts for a console of `rich`: heading, table of checks, summary.

        Args:
            every_check: whether to show all checks; otherwise the usual ones and all warnings.
        """
        return fit_parts(self.fit, self.goodness, self.measurements, every_check=every_check)

    def __str__(self) -> str:
        return as_text(*self.as_rich())

    def __repr__(self) -> str:
        return f"DeviceFit({fit_heading(self.fit, self.measurements)}; {summary(self.goodness)})"

    def _repr_html_(self) -> str:
        return as_html(*self.as_rich())


def _sources(measurements: str | Path | Sequence[str | Path] | Measurements) -> list[Path]:
    """Return the files, and folders, that measurements are in."""
    if isinstance(measurements, Measurements):
        return list(measurements.files or (measurements.path,))
    paths = [measurements] if isinstance(measurements, str | Path) else measurements
    if not paths:
        raise InputError("no measurements: name a file, a folder, or several")
    return [Path(path) for path in paths]


def planned_files(out: str | Path, yaml: bool) -> tuple[Path, ...]:
    """Return the paths that a device model saved to `out` takes, with `yaml` also that of the YAML file beside it.

    Raises:
        InputError: if `out` ends neither in .safetensors nor, for a table of levels, in .yaml.
    """
    path = Path(out)
    if path.suffix in YAML and not yaml:
        return (path,)  # of a table of levels
    require_safetensors(path)
    return (path, path.with_suffix(".yaml")) if yaml else (path,)


def fit_device(
    measurements: str | Path | Sequence[str | Path] | Measurements,
    out: str | Path | None = None,
    *,
    order: int = 10,
    components: int | str = "auto",
    base: str | Path = "synaptogen",
    column: Mapping[str, str] | Sequence[str] | str = (),
    columns: Sequence[str] | str = (),
    polarity: str = "negative",
    from_base: Sequence[str] | str = (),
    read_volts: float | None = None,
    reset_full_volts: float | None = None,
    linear_lrs: bool = False,
    temperature_kelvin: float | None = None,
    yaml: bool = False,
    seed: int = 0,
    force: bool = False,
    listener: Listener | None = None,
) -> DeviceFit | LevelsFit:
    """Fit a device to measurements of cells that were cycled, or of levels, and check it on cells drawn from it.

    >>> result = memsim.fit_device("cycles.csv", "mine.safetensors", order=1)
    >>> len(result.to_dict()["goodness"]["checks"])
    38
    >>> result.write_report("mine-report").name
    'report.html'

    `memsim fit-device` makes this call; the arguments have the names of its options.

    Args:
        measurements: a text (CSV, TSV, gzip), Parquet or NPZ file, a folder or several of them: a table of features
            (device, cycle, hrs_ohms, us_volts, lrs_ohms, ur_volts), or samples of I-V sweeps (device, cycle,
            voltage_volts, current_amperes, optionally time_seconds); or a table of levels, which makes a device of kind
            `levels`: readings (cell, time_seconds, conductance_siemens, optionally target_siemens, temperature_kelvin),
            a summary (target_siemens, mean_siemens, std_siemens, optionally time_seconds), or pulses (cell, pulse,
            conductance_siemens). Or measurements that are loaded already
            (`memsim.inspect_measurements(...).measurements`).
        out: the file to write the model to (.safetensors; .yaml of levels); by default nothing is written (see
            `DeviceFit.save`).
        order: order of the cycle-to-cycle process, 1 to 50.
        components: number of components of the device-to-device mixture, or `auto` for the one that the Bayesian
            information criterion prefers.
        base: name or file of the device model that supplies whatever was not measured.
        column: names of columns as memsim expects them -> their names in the file; or strings `NAME=THEIRS`. `file` and
            `row` stand for the name of the file and the number of the row; `wafer+die` for two columns that name a
            device (or cell) together.
        columns: names of all columns in order, for a text file without them; `-` leaves one out, and `...` at the end
            repeats the names along a row, which is a device's. `conductance_uS,...` stands for matrices of levels.
        polarity: `negative` if US < 0 < UR in the file; `positive` if UR < 0 < US; `magnitude` for absolute values.
        from_base: features (`hrs`, `us`, `lrs`, `ur`) that were not measured and are taken from the base model; or
            `cycles`, the changes from cycle to cycle, where each cell was cycled once or a few times.
        read_volts: the voltage at which resistances were measured, or at which sweeps are read; by default that of
            the base model.
        reset_full_volts: the voltage at which a RESET is complete; by default it is fitted to sweeps, or taken from
            the base model.
        linear_lrs: whether the low-resistance envelope is ohmic.
        temperature_kelvin: the temperature whose rows of a table of levels are taken, where there are several.
        yaml: whether to write the numbers as YAML beside `out`.
        seed: seed of everything that is drawn.
        force: whether to overwrite files that exist.
        listener: shows progress and warnings; by default warnings are Python's.

    Returns:
        The fit, its checks and the measurements; `model` is the device model, or `device` for a table of levels.

    Raises:
        InputError: for options and measurements that make no model, in one line that names the remedy.
    """
    require_types(fit_device, locals())
    seed = int(seed)  # of numpy's numbers
    listener = listener or Listener()
    sources = _sources(measurements)
    if not isinstance(measurements, Measurements):
        names, renamed = parse_names(columns), parse_renames(column)
        if kind := levels_kind(measurements, names, renamed):
            reading: dict[str, Any] = {"columns": names, "renamed": renamed, "temperature_kelvin": temperature_kelvin}
            common: dict[str, Any] = {"seed": seed, "force": force, "listener": listener}
            return fit_levels(measurements, kind, out, read_volts=read_volts, **reading, **common)
    if temperature_kelvin is not None:
        raise InputError("--temperature-kelvin: is for tables of levels, with a column temperature_kelvin")
    if out is not None and Path(out).suffix in YAML:
        raise InputError(
            f"{out}: YAML is for tables of levels, with columns conductance (or resistance) and time or target, which "
            "--column conductance_uS=THEIRS and so on tell where they have other names; the "
            "model of a table of cycles is a .safetensors file"
        )
    if out is not None:
        require_safetensors(Path(out))
    if yaml and out is None:
        raise InputError("--yaml: the YAML file goes beside the device model; name that, too (out, or -o)")
    files = () if out is None else planned_files(out, yaml)
    require_outputs(files, force, sources)
    if not 1 <= order <= MOST:
        raise InputError(f"--order {order}: expected a number from 1 to {MOST}")
    count = _component_count(components)
    require_volts("--reset-full-volts", reset_full_volts)
    name = files[0].stem if files else sources[0].stem
    has_base_cycles = CYCLES in parse_features(from_base)
    options = FitOptions(order, count, str(base), reset_full_volts, linear_lrs, seed, name, has_base_cycles)
    with listener.working():
        loaded = load_measurements(
            measurements, base, column, columns, polarity, from_base, read_volts, seed=seed, listener=listener
        )
        fit = fit_model(loaded, options, listener.progress)
        goodness = judge(fit, loaded, seed=seed, progress=listener.progress)
    result = DeviceFit(fit, goodness, loaded, files)
    if files:
        result._write(files)
    for note in fit.notes:
        listener.warn(note)
    return result


def _component_count(components: int | str) -> int | None:
    """Return the number of components, None for `auto`. Raises InputError for anything else."""
    if components == "auto":
        return None
    if not str(components).isdecimal() or not 1 <= int(components) <= MOST:
        raise InputError(f"--components {components}: expected auto, or a number from 1 to {MOST}")
    return int(components)
