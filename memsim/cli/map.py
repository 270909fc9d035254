"""`memsim map`: program the weights of a checkpoint onto simulated arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memsim.cli import options
from memsim.storage.outputs import require_outputs, require_page, write_json


def command(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Any safetensors file, a folder of Hugging Face's, or a bundled checkpoint: demo, demo-float.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="OUT", help="Mapped file. Default: CHECKPOINT with the suffix .mapped.safetensors."
        ),
    ] = None,
    hardware: options.Hardware = None,
    bits: options.Bits = None,
    cell: options.Cell = None,
    set_: options.Set = None,
    mapping: options.Mapping = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Map only layers whose names match. Repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="GLOB", help="Keep layers whose names match digital. Repeatable."),
    ] = None,
    calibrate: options.Calibrate = None,
    calibration_utterances: options.CalibrationUtterances = 200,
    data_root: options.DataRoot = None,
    architecture: options.Architecture = None,
    architecture_config: options.ArchitectureConfig = None,
    seed: options.Seed = 0,
    budget: options.Budget = False,
    cost: options.Cost = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be mapped without programming it.")
    ] = False,
    json_file: options.Json = None,
    report: options.Report = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Program the layers of a checkpoint onto memristor arrays: linear, convolutional, recurrent and attention layers.

    Shows what was mapped, what stayed digital and why, and writes a self-contained file that `memsim eval` runs.
    """
    require_page(report, force=True)
    from memsim.cli.progress import TerminalListener, say, stdout
    from memsim.mapping import map_checkpoint
    from memsim.networks.open_checkpoint import mapped_path, open_checkpoint
    from memsim.report.text import show

    opened, _ = open_checkpoint(checkpoint, architecture, architecture_config)
    out = out or mapped_path(checkpoint)
    require_outputs((None if dry_run else out, json_file, report), force, inputs=opened.files)
    quiet = quiet or str(json_file) == "-"
    with_report = None if report else False  # a report includes it where it can be measured
    result = map_checkpoint(
        opened,
        "physical" if hardware is None else hardware,
        bits=bits,
        cell=cell,
        set=set_ or (),
        include=include or (),
        exclude=exclude or (),
        calibrate=calibrate,
        calibration_utterances=calibration_utterances,
        data_root=data_root,
        mapping=mapping,
        seed=seed,
        out=out,
        budget=budget or with_report,
        cost=cost or with_report,
        dry_run=dry_run,
        force=force,
        listener=TerminalListener(quiet=quiet, silent=quiet),
    )
    try:
        write_json(json_file, result.to_dict())
        if report is not None:
            result.write_report(report, options.command_line())
    finally:  # a full disk does not lose the result, and a reader that leaves does not lose a file
        if not quiet:
            show(stdout, *result.parts(verbose=verbose))
    if report is not None and not quiet:
        say(f"wrote {report}")
