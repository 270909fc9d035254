"""`memsim fit-device`: fit a device model to measurements."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memsim.cli import options
from memsim.cli.progress import TerminalListener, stdout
from memsim.errors import InputError
from memsim.storage.outputs import require_outputs, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType

measurements_option = partial(typer.Option, rich_help_panel="Measurements")


def command(
    measurements: Annotated[
        list[Path],
        typer.Argument(
            metavar="MEASUREMENTS...",
            help="Text (CSV, TSV, gzip), Parquet or NPZ file of features (columns device, cycle, hrs_ohms, us_volts, "
            "lrs_ohms, ur_volts) or samples of I-V sweeps (device, cycle, voltage_volts, current_amperes, optionally "
            "time_seconds). Other units are converted, such as hrs_kohm, lrs_uS, us_mV. Or a table of levels: readings "
            "(cell, time_seconds, conductance_uS, optionally target_uS, temperature_kelvin), a summary (target_uS, "
            "mean_uS, std_uS, optionally time_seconds), or pulses (cell, pulse, conductance_uS). Several files, or a "
            "folder, are one measurement.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DEVICE", help="Device file: .safetensors, .yaml of levels."),
    ] = None,
    order: Annotated[
        int, typer.Option("--order", metavar="P", min=1, max=50, help="Order of the cycle-to-cycle process.")
    ] = 10,
    components: Annotated[
        str,
        typer.Option("--components", metavar="K|auto", help="Number of components of the device-to-device mixture."),
    ] = "auto",
    base: Annotated[
        str,
        typer.Option(
            "--base", metavar="NAME|FILE", help="Device model that supplies the features that were not measured."
        ),
    ] = "synaptogen",
    column: Annotated[
        list[str] | None,
        measurements_option(
            "--column",
            metavar="NAME=THEIRS",
            help="Name of a column in the file, such as hrs_kohm=RH; device=file and device=row stand for the name of "
            "the file and the number of the row, device=wafer+die for columns that name it together. Repeatable.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        measurements_option(
            "--columns",
            metavar="NAME,NAME,...",
            help="Names of all columns in order, for a file without them (- leaves one out). With ... at the end, the "
            "names repeat along a row, which is a device's: hrs_ohms,lrs_ohms,... Matrices of levels, one for each "
            "time, are conductance_uS,...",
        ),
    ] = None,
    temperature_kelvin: Annotated[
        float | None,
        measurements_option(
            "--temperature-kelvin", metavar="K", help="Temperature whose rows of a table of levels are taken."
        ),
    ] = None,
    polarity: Annotated[
        str,
        measurements_option(
            "--polarity",
            metavar="negative|positive|magnitude",
            help="Sign of the SET voltage in the file: negative (US < 0 < UR), positive (UR < 0 < US; all voltages and "
            "currents change sign), magnitude (a table of absolute values).",
        ),
    ] = "negative",
    from_base: Annotated[
        list[str] | None,
        measurements_option(
            "--from-base",
            metavar="FEATURE",
            help="Take hrs, us, lrs or ur, not measured, from the base model, independent of the others; or cycles, "
            "the changes from cycle to cycle. Repeatable.",
        ),
    ] = None,
    read_volts: Annotated[
        float | None,
        measurements_option(
            "--read-volts",
            metavar="V",
            help="Voltage at which resistances were measured or sweeps are read. Default: the base model's.",
        ),
    ] = None,
    reset_full_volts: Annotated[
        float | None,
        measurements_option(
            "--reset-full-volts",
            metavar="V",
            help="Voltage at which a RESET is complete. Default: fitted to sweeps, or else the base model's.",
        ),
    ] = None,
    linear_lrs: Annotated[
        bool, measurements_option("--linear-lrs", help="Make the low-resistance envelope ohmic.")
    ] = False,
    inspect: Annotated[
        bool, measurements_option("--inspect", help="Show the contents of the file without fitting.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Folder for report.html and report.json.")
    ] = None,
    yaml: Annotated[bool, typer.Option("--yaml", help="Also write the numbers as YAML beside DEVICE.")] = False,
    json_file: options.Json = None,
    seed: options.Seed = 0,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every check.")] = False,
) -> None:
    """Fit a device to measurements of cycled cells, or of levels.

    Cells drawn from the fitted model are compared with the measured ones. --cell and hardware specs take the file.
    """
    if out is None and not inspect:
        raise InputError(
            "-o DEVICE.safetensors is missing (.yaml for a table of levels): name the file, or use --inspect"
        )
    from memsim.fit.device_fit import fit_device, inspect_measurements, planned_files, require_folder

    planned = () if inspect or out is None else planned_files(out, yaml)
    require_outputs((*planned, json_file), force, inputs=measurements)
    if report is not None and not inspect:
        require_folder(report, force)
    quiet = quiet or str(json_file) == "-"
    listener = TerminalListener(quiet=quiet, silent=quiet)
    reading: dict[str, Any] = {
        "base": base,
        "column": column or (),
        "columns": columns or (),
        "temperature_kelvin": temperature_kelvin,
        "polarity": polarity,
        "from_base": from_base or (),
        "read_volts": read_volts,
        "seed": seed,
        "listener": listener,
    }
    if inspect:
        inspection = inspect_measurements(measurements, **reading)
        write_json(json_file, inspection.to_dict())
        if not quiet:
            _show(inspection.as_rich())
        return
    result = fit_device(
        measurements,
        out,
        order=order,
        components=components,
        reset_full_volts=reset_full_volts,
        linear_lrs=linear_lrs,
        yaml=yaml,
        force=force,
        **reading,
    )
    try:
        page = result.write_report(report, force=True) if report is not None else None  # checked above, with --force
        write_json(json_file, result.to_dict())
    finally:  # a full disk does not lose the result, and a reader that leaves does not lose a file
        if not quiet:
            *parts, summary = result.as_rich(every_check=verbose)
            more = "" if verbose or len(parts) == 1 else " (--verbose shows all)"  # one part is the heading alone
            _show((*parts, f"{summary}{more}"))
    written = [*result.files, *([page] if page else [])]
    listener.say(f"wrote {', '.join(map(str, written))}")


def _show(parts: Sequence[RenderableType]) -> None:
    """Print the heading in bold and the other parts below it."""
    heading, *others = parts
    stdout.print(heading, style="bold", highlight=False, soft_wrap=True)
    for part in others:
        stdout.print(part, highlight=False, soft_wrap=isinstance(part, str))
