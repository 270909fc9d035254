"""`memsim fit-device`: a device model from one's own measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memsim.cli import options
from memsim.errors import InputError
from memsim.units import counted

if TYPE_CHECKING:
    from memsim.fit import Fit, Goodness, Measurements

MEASUREMENTS_PANEL = "Measurements"


def command(
    measurements: Annotated[
        Path,
        typer.Argument(
            metavar="MEASUREMENTS",
            help="CSV, Parquet or NPZ. Features: device, cycle, hrs_ohms, us_volts, lrs_ohms, ur_volts. Or samples of "
            "I-V sweeps: device, cycle, voltage_volts, current_amperes, optionally time_seconds. Other units convert: "
            "hrs_kohm, us_mV, current_uA.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DEVICE", help="The device model (.safetensors).")
    ] = None,
    order: Annotated[
        int, typer.Option("--order", metavar="P", min=1, max=50, help="Order of the cycle-to-cycle process.")
    ] = 10,
    components: Annotated[
        str, typer.Option("--components", metavar="K|auto", help="Components of the device-to-device mixture.")
    ] = "auto",
    base: Annotated[
        str,
        typer.Option("--base", metavar="NAME|FILE", help="Device model that what was not measured is taken from."),
    ] = "synaptogen",
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME=THEIRS",
            help="The file calls column NAME otherwise, such as hrs_kohm=RH. Repeatable.",
            rich_help_panel=MEASUREMENTS_PANEL,
        ),
    ] = None,
    polarity: Annotated[
        str,
        typer.Option(
            "--polarity",
            metavar="negative|positive|magnitude",
            help="Sign of the SET voltage in the file: negative (US < 0 < UR), positive (UR < 0 < US; all voltages and "
            "currents change sign), magnitude (a table of absolute values).",
            rich_help_panel=MEASUREMENTS_PANEL,
        ),
    ] = "negative",
    from_base: Annotated[
        list[str] | None,
        typer.Option(
            "--from-base",
            metavar="FEATURE",
            help="hrs, us, lrs or ur was not measured: as in the base model, independent of the others. Repeatable.",
            rich_help_panel=MEASUREMENTS_PANEL,
        ),
    ] = None,
    read_volts: Annotated[
        float | None,
        typer.Option(
            "--read-volts",
            metavar="V",
            help="Where resistances were measured, or where sweeps are read. Default: that of the base model.",
            rich_help_panel=MEASUREMENTS_PANEL,
        ),
    ] = None,
    reset_full_volts: Annotated[
        float | None,
        typer.Option(
            "--reset-full-volts",
            metavar="V",
            help="A RESET from here on is full. Default: fitted to sweeps, else that of the base model.",
            rich_help_panel=MEASUREMENTS_PANEL,
        ),
    ] = None,
    linear_lrs: Annotated[
        bool,
        typer.Option("--linear-lrs", help="The low-resistance envelope is ohmic.", rich_help_panel=MEASUREMENTS_PANEL),
    ] = False,
    inspect: Annotated[
        bool,
        typer.Option("--inspect", help="Say what the file holds; fit nothing.", rich_help_panel=MEASUREMENTS_PANEL),
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write report.html and report.json there.")
    ] = None,
    yaml: Annotated[bool, typer.Option("--yaml", help="Write the numbers as YAML beside DEVICE.")] = False,
    json_file: options.Json = None,
    seed: options.Seed = 0,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every check.")] = False,
) -> None:
    """Fit a device model to measurements of cells that were cycled.

    The result is what --cell takes everywhere. Whether it describes the measurements is checked on cells drawn from it.
    """
    yaml_file = out.with_suffix(".yaml") if yaml and out else None
    if not inspect:
        if out is None:
            raise InputError("-o DEVICE.safetensors is missing: where to write the model (or --inspect)")
        options.require_safetensors(out)
    options.require_outputs((*(() if inspect else (out, yaml_file)), json_file), force, inputs=[measurements])
    count = _components(components)
    unmeasured = _features(from_base)
    renamed = _renamed(column)
    for flag, value in (("--read-volts", read_volts), ("--reset-full-volts", reset_full_volts)):
        if value is not None and not 0 < value < 100:
            raise InputError(f"{flag} {value:g}: expected a voltage above 0")
    from memsim.cli.progress import pass_progress, say, warn
    from memsim.device import load_device, save_device
    from memsim.device.file import summarise, summary_yaml
    from memsim.fit import FitOptions, fit_device, judge, read_measurements
    from memsim.fit.fit_report import require_folder, to_dict, write_report
    from memsim.fit.inspect import inspect as facts_of
    from memsim.fit.measurements import POLARITIES

    if polarity not in POLARITIES:
        raise InputError(f"--polarity {polarity}: expected {', '.join(POLARITIES)}")
    if report is not None and not inspect:
        require_folder(report, force)
    quiet = quiet or str(json_file) == "-"
    volts = read_volts if read_volts is not None else load_device(base).reference_volts
    with pass_progress(quiet) as progress:
        measured = read_measurements(
            measurements,
            columns=renamed,
            from_base=unmeasured,
            polarity=polarity,
            read_volts=volts,
            seed=seed,
            progress=progress,
        )
        if inspect:
            facts = facts_of(measured)
        else:
            assert out is not None
            wanted = FitOptions(order, count, base, reset_full_volts, linear_lrs, seed, out.stem)
            fit = fit_device(measured, wanted, progress)
            goodness = judge(fit, measured, seed=seed, progress=progress)
    if inspect:
        options.write_json(json_file, facts)
        if not quiet:
            _render_facts(facts)
        return
    assert out is not None
    save_device(fit.model, out, fit.provenance(measured))
    if yaml_file is not None:
        options.write_text(yaml_file, summary_yaml(summarise(fit.model) | {"fit": to_dict(fit, None, measured)["fit"]}))
    page = write_report(report, fit, goodness, measured) if report is not None else None
    options.write_json(json_file, to_dict(fit, goodness, measured))
    if not quiet:
        _render(fit, goodness, measured, verbose)
        for note in fit.notes:
            warn(note)
        say(f"wrote {', '.join(str(path) for path in (out, yaml_file, page) if path is not None)}")


def _components(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 50:
        raise InputError(f"--components {text}: expected auto, or a number from 1 to 50")
    return int(text)


def _features(names: list[str] | None) -> list[str]:
    given = [name.strip().lower() for text in names or () for name in text.split(",")]
    if wrong := [name for name in given if name not in ("hrs", "us", "lrs", "ur")]:
        raise InputError(f"--from-base {wrong[0]}: expected hrs, us, lrs or ur")
    if len(set(given)) == 4:
        raise InputError("--from-base hrs,us,lrs,ur: leaves nothing to fit")
    return given


def _renamed(pairs: list[str] | None) -> dict[str, str]:
    split = {}
    for pair in pairs or ():
        name, equals, theirs = pair.partition("=")
        if not (name and equals and theirs):
            raise InputError(f"--column {pair}: expected NAME=THEIRS, such as hrs_kohm=RH")
        split[name] = theirs
    return split


def _render_facts(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from memsim.cli.progress import stdout

    cycles = facts["cycles_a_device"]
    per_device = f"{cycles['min']:,} to " if cycles["min"] < cycles["max"] else ""
    stdout.print(
        f"{facts['file']}: {facts['kind']}, {counted(facts['rows'], 'row')}, {counted(facts['devices'], 'device')}, "
        f"{per_device}{counted(cycles['max'], 'cycle')} each",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )
    table = Table()
    for name in ("", "column", "unit", "missing", "1 %", "median", "99 %"):
        table.add_column(name, justify="left" if name in ("", "column", "unit") else "right")
    for name, feature in facts["features"].items():
        factor = feature["factor"]
        unit = feature["unit"] + (
            "" if factor == 1.0 else f" ({factor if isinstance(factor, str) else f'x {factor:g}'})"
        )
        values = (f"{value:.4g}" for value in feature["quantiles"])
        table.add_row(name, feature["column"], unit, f"{feature['missing']:.1%}", *values)
    stdout.print(table)
    lines = []
    if sweeps := facts.get("sweeps"):
        if "lowest_volts" in sweeps:
            lines.append(
                f"sweeps 0 -> {sweeps['lowest_volts']:.4g} -> 0 -> {sweeps['highest_volts']:.4g} -> 0 V, "
                f"{sweeps['samples_a_cycle']:.0f} samples a cycle, read at {facts['read_volts']:g} V"
            )
        lines.append("cycles: " + ", ".join(f"{count:,} {outcome}" for outcome, count in sweeps["outcomes"].items()))
    if facts["unused_columns"]:
        lines.append(f"not used: {', '.join(facts['unused_columns'])}")
    lines += [f"a fit would refuse {refused}" for refused in facts["refused"]]
    stdout.print("\n".join(lines), highlight=False, soft_wrap=True, end="\n" if lines else "")


def _render(fit: Fit, goodness: Goodness, measurements: Measurements, verbose: bool) -> None:
    from rich.table import Table

    from memsim.cli.progress import stdout
    from memsim.fit.fit_report import MARKS, size_of, summary, value_of

    stdout.print(
        f"{fit.model.name}: {counted(len(fit.devices), 'device')} of {measurements.path.name}, "
        f"order {fit.model.order}, "
        f"{counted(len(fit.mixture.weights), 'component')}, I-V curves of {fit.envelopes.source}",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )
    table = Table()
    for name in ("", "", "measured", "model", "difference", "tolerance", ""):
        table.add_column(name, justify="right" if name else "left")
    shown = [check for check in goodness.checks if verbose or check.verdict == "warn" or check.quantity in _USUAL]
    for check in shown:
        table.add_row(
            check.feature,
            f"{check.quantity} {check.where}".rstrip(),
            value_of(check.measured),
            value_of(check.generated),
            size_of(check, check.error, signed=True),
            size_of(check, check.tolerance),
            MARKS[check.verdict],
            style="yellow" if check.verdict == "warn" else "",
        )
    stdout.print(table)
    stdout.print(summary(goodness) + ("" if verbose else " (--verbose shows all)"), highlight=False)


_USUAL = ("mean", "worst quantile, 1 to 99 %", "autocorrelation, lag 1")
