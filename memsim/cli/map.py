"""`memsim map`: the weights of a checkpoint onto simulated arrays."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memsim.cli import options
from memsim.cli.caveats import say_of_prefixes, warn_of_disturbing_reads, warn_of_globs, warn_of_other_bits
from memsim.errors import InputError
from memsim.units import counted

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from memsim.asr.running import Progress
    from memsim.crossbar.matrix import MappedMatrix
    from memsim.crossbar.programming_report import ProgrammingReport
    from memsim.crossbar.tiling import Tiling
    from memsim.evaluation.network_cost import Cost
    from memsim.mapping import MappedTensors
    from memsim.nn.budget import Budget
    from memsim.nn.calibration import CalibrationData
    from memsim.nn.deviation import Deviation
    from memsim.nn.plan import MappedLayer, Plan
    from memsim.spec import HardwareSpec
    from memsim.storage.checkpoint import Checkpoint


def command(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Any safetensors file, or a bundled one: demo, demo-float.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="OUT", help="Default: CHECKPOINT with the suffix .mapped.safetensors."),
    ] = None,
    hardware: options.Hardware = None,
    bits: options.Bits = None,
    cell: options.Cell = None,
    set_: options.Set = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="GLOB", help="Map only layers that match. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Keep layers digital. Repeatable.")
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="DATA",
            help="Run the recogniser on this data (its dev split) to set converter ranges.",
            rich_help_panel=options.DATA_PANEL,
        ),
    ] = None,
    data_root: options.DataRoot = None,
    architecture: options.Architecture = None,
    architecture_config: options.ArchitectureConfig = None,
    seed: options.Seed = 0,
    budget: options.Budget = False,
    cost: options.Cost = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be mapped; program nothing.")] = False,
    json_file: options.Json = None,
    report: options.Report = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Program the layers of a checkpoint onto memristor arrays: linear, convolutional, recurrent and attention ones.

    Says what was mapped, what stayed digital and why, and writes a self-contained file that `memsim eval` runs.
    """
    from memsim.networks.open_checkpoint import open_checkpoint

    for flag, wanted in {"--budget": budget, "--cost": cost, "--report": report is not None}.items():
        if wanted and dry_run:
            raise InputError(f"{flag} --dry-run: the {flag[2:]} is that of programmed arrays; leave one of the two out")
    if data_root is not None and calibrate is None:
        raise InputError(f"--data-root {data_root}: is where --calibrate finds its data; name that, too")
    options.require_page(report, force=True)  # whether it may be written is found out below
    opened, _ = open_checkpoint(checkpoint, architecture, architecture_config)
    if out is None:
        # A bundled checkpoint is mapped into the folder that one works in.
        folder = opened.path.parent if Path(checkpoint).exists() else Path()
        stem = opened.path.name.removesuffix(".index.json").removesuffix(".safetensors")
        out = folder / f"{stem}.mapped.safetensors"
    options.require_safetensors(out)
    options.require_outputs((None if dry_run else out, json_file, report), force, inputs=opened.files)
    from memsim.mapping import is_full_precision, map_checkpoint, plan_checkpoint, stored_statistics
    from memsim.nn.plan import Selection, chosen_bits

    spec = options.choose_hardware(hardware, bits, cell, set_)
    plan = plan_checkpoint(opened, spec, Selection(include or (), exclude or ()))
    spec = chosen_bits(spec, plan)
    quiet = quiet or str(json_file) == "-"
    if not quiet:
        say_of_prefixes(opened)
        warn_of_globs(plan, spec)
        warn_of_disturbing_reads(plan, spec)
        warn_of_other_bits(plan, opened)
    if dry_run:
        options.write_json(json_file, _to_dict(opened, spec, plan, None, None) | {"seed": seed})
        if not quiet:
            _render(opened, spec, plan, None, None, None, None, verbose)
        return
    from memsim.cli.progress import pass_progress, say, warn
    from memsim.evaluation.network_cost import Cost, LayerCost, stored_cost
    from memsim.nn.budget import Budget, LayerBudget, layer_budget, require_samples
    from memsim.nn.calibration import silent_inputs
    from memsim.nn.deviation import deviating, exclude_options
    from memsim.storage.checkpoint import save_checkpoint

    cost = cost or report is not None
    against_full_precision = is_full_precision(opened)
    budgets: list[LayerBudget] = []
    rates = _vectors_per_audio_second(opened) if cost else None
    costs: list[LayerCost] = []
    with pass_progress(quiet) as progress:
        data = None if calibrate is None else _calibration_data(opened, calibrate, data_root, progress)
        statistics = plan.completed(stored_statistics(opened) if data is None else data.statistics())
        if budget:
            named = "" if "architecture" in opened.metadata else " of the network that --architecture names"
            remedy = f"add --calibrate DATA, which measures them{named}, or leave --budget out"
            require_samples(opened.path, (layer.name for layer in plan.mapped), statistics, remedy)
        elif report is not None:
            budget = all(layer.name in statistics for layer in plan.mapped)
        steps = spec.steps() if budget else {}

        def count(weight: Tensor, matrix: MappedMatrix) -> None:
            if steps:
                exact = weight if against_full_precision else None
                budgets.append(layer_budget(matrix, steps, seed, statistics[matrix.name], exact))
            if cost:
                costs.append(stored_cost(matrix, statistics, rates))

        def programmed(done: float) -> None:
            progress("programming", done, total=plan.cells, unit="cells")

        mapped = map_checkpoint(
            opened, spec, plan, seed=seed, statistics=statistics, data=data, progress=programmed, on_layer=count
        )
    save_checkpoint(out, mapped.tensors, mapped.metadata)
    found = Budget(tuple(budgets), against_full_precision) if budget else None
    taken = Cost.of_stored(costs, spec, rates) if cost else None
    result = _to_dict(opened, spec, plan, mapped, out) | {"seed": seed}
    result |= {"budget": found.to_dict()} if found else {}
    result |= {"cost": taken.to_dict()} if taken else {}
    options.write_json(json_file, result)
    if report is not None:
        from memsim.report.mapping_page import mapping_page

        options.write_text(report, mapping_page(result, options.command_line()))
    if not quiet:
        _render(opened, spec, plan, mapped, found, taken, out, verbose)
        if report is not None:
            say(f"wrote {report}")
    if not quiet:
        for warning in (silent_inputs(plan, statistics), deviating(mapped.deviations, exclude_options)):
            if warning is not None:
                warn(warning)
    if mapped.uncalibrated and not quiet:
        remedy = (
            "--calibrate DATA sets them"
            if "architecture" in opened.metadata
            else "memsim does not know the network that these layers belong to (see --architecture), so it cannot run "
            "it to set them"
        )
        warn(
            f"{counted(len(mapped.uncalibrated), 'layer is', 'layers are')} uncalibrated: the checkpoint holds no "
            f"input statistics, so converter ranges are open; {remedy}"
        )


def _calibration_data(opened: Checkpoint, data: str, root: Path | None, progress: Progress) -> CalibrationData:
    from memsim.asr.corpora import load_corpus
    from memsim.asr.data import FeatureSource
    from memsim.asr.recogniser import load_recogniser
    from memsim.asr.running import calibration_data

    recogniser = load_recogniser(opened)
    corpus = load_corpus(data, split="dev", root=root, text_style=recogniser.text_style)
    return calibration_data(recogniser, corpus.utterances, FeatureSource(recogniser.features), progress)


def _vectors_per_audio_second(opened: Checkpoint) -> dict[str, float] | None:
    """None for a network that memsim does not know."""
    from memsim.asr.architectures import ARCHITECTURES
    from memsim.asr.recogniser import load_recogniser
    from memsim.evaluation.network_cost import vectors_per_audio_second

    if opened.metadata.get("architecture") not in ARCHITECTURES:
        return None
    return vectors_per_audio_second(load_recogniser(opened))


def _render(
    opened: Checkpoint,
    spec: HardwareSpec,
    plan: Plan,
    mapped: MappedTensors | None,
    budget: Budget | None,
    cost: Cost | None,
    out: Path | None,
    verbose: bool,
) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from memsim.cli.budget import render_budget
    from memsim.cli.cost import render_cost
    from memsim.cli.progress import stdout
    from memsim.evaluation.verdicts import unfitted, unfitted_note

    errors = {} if mapped is None else mapped.programming_errors
    reports = {} if mapped is None else mapped.programming
    stdout.print(f"{opened.path.name} on {spec.title}", style="bold", highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", overflow="fold", min_width=16)
    columns = ["layers", "out x in", "bits", "slices", "arrays", "cells", "used", *(["error"] if errors else [])]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, layers in _alike(plan, verbose).items():
        tiling = layers[0].tiling
        row = [
            f"{len(layers)}",
            _shape(tiling),
            f"{tiling.bits}",
            f"{tiling.slices}",
            f"{sum(layer.tiling.tiles for layer in layers):,}",
            _short(sum(layer.tiling.cells for layer in layers)),
            f"{tiling.utilisation:.0%}",
        ]
        if errors:
            row.append(f"{fmean(errors[layer.name] for layer in layers):.1%}")
        table.add_row(name, *row)
    stdout.print(table)
    if errors:
        stdout.print("error: programmed against intended weights, relative (Frobenius norm)", style="dim")
    if reports:
        stdout.print(_programming_table(reports))
        stdout.print(
            "time: one pulse or read after the other; spread: standard deviation of the cells' currents by level, in % "
            "of the mean LRS current",
            style="dim",
        )
    if mapped is not None and mapped.deviations:
        stdout.print(_deviations_line(mapped.deviations), highlight=False, soft_wrap=True)
    if budget:
        render_budget(budget, verbose)
    if cost:
        render_cost(cost, verbose)
    weights = sum(layer.tiling.weights for layer in plan.mapped)
    arrays = sum(layer.tiling.tiles for layer in plan.mapped)
    lines = [
        f"{counted(len(plan.mapped), 'layer')}, {counted(weights, 'weight')} on {counted(plan.cells, 'cell')} in "
        f"{counted(arrays, 'array')}; {counted(plan.conversions, 'conversion')} for one input of each layer",
        f"{plan.fraction_on_arrays:.1%} of the {plan.weights:,} weights in matrices and tables are on arrays",
    ]
    for reason, names in _by_reason(plan, verbose).items():
        most = len(names) if verbose else 4
        shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
        share = sum(layer.weights for layer in plan.digital if layer.reason == reason) / max(1, plan.weights)
        lines.append(f"digital: {shown} ({reason}){f', {share:.1%} of the weights' if share >= 0.0005 else ''}")
    if laws := unfitted(spec):
        lines.append(unfitted_note(laws))
    lines += plan.remarks
    lines.append(f"wrote {out}" if out else "dry run: nothing was programmed or written")
    stdout.print("\n".join(lines), highlight=False, soft_wrap=True)


def _deviations_line(deviations: dict[str, Deviation]) -> str:
    """Name the layers whose products err most on calibration inputs."""
    from memsim.nn.deviation import largest, worst

    first = next(iter(deviations.values()))
    exact = "the quantised digital ones" if first.to_full_precision is None else "full precision"
    shown = ", ".join(f"{name} {largest(deviations[name]):.1%}" for name in worst(deviations)[:3])
    return f"deviation of the products from {exact} on calibration inputs, largest: {shown}"


def _programming_table(reports: dict[str, ProgrammingReport]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    from memsim.crossbar.programming_report import total

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("programming", no_wrap=True)
    for column in ("cells", "pulses a cell", "most", "verify reads", "failed", "time", "energy"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("spread %", justify="right")
    for report in total(reports.values()):
        table.add_row(
            report.scheme,
            _short(report.cells),
            f"{report.pulses / report.cells:.2f}",
            f"{report.max_pulses:,}",
            f"{report.verify_reads / report.cells:.2f}",
            "" if report.failures is None else f"{report.failures:,}",
            f"{report.seconds:.3g} s",
            f"{report.joules:.3g} J",
            ", ".join("-" if level.spread is None else f"{100 * level.spread:.2f}" for level in report.levels),
        )
    return table


def _alike(plan: Plan, verbose: bool) -> dict[str, list[MappedLayer]]:
    """Layers in rows: those whose names differ in numbers only and that lie on arrays alike share one."""
    rows: dict[tuple[str, object], list[MappedLayer]] = {}
    for layer in plan.mapped:
        name = layer.name if verbose else _pattern(layer.name)
        rows.setdefault((name, layer.tiling), []).append(layer)
    return {(name if len(layers) > 1 else layers[0].name): layers for (name, _), layers in rows.items()}


def _shape(tiling: Tiling) -> str:
    """Of a matrix; of one with several blocks on its diagonal, how many of which shape."""
    block = f"{tiling.out_features // tiling.groups} x {tiling.block_inputs}"
    return block if tiling.groups == 1 else f"{tiling.groups} of {block}"


def _short(count: int) -> str:
    """`count` to three digits: 1,179,648 is 1.18 M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _pattern(name: str) -> str:
    """`name` with its numbers as *: `blocks.3.norm` is `blocks.*.norm`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _by_reason(plan: Plan, verbose: bool) -> dict[str, list[str]]:
    grouped: dict[str, dict[str, None]] = {}
    for layer in plan.digital:
        grouped.setdefault(layer.reason, {})[layer.name if verbose else _pattern(layer.name)] = None
    return {reason: list(names) for reason, names in grouped.items()}


def _to_dict(
    opened: Checkpoint,
    spec: HardwareSpec,
    plan: Plan,
    mapped: MappedTensors | None,
    out: Path | None,
) -> dict[str, Any]:
    from memsim.crossbar.programming_report import total
    from memsim.evaluation.verdicts import hardware_dict

    errors = {} if mapped is None else mapped.programming_errors
    reports = {} if mapped is None else mapped.programming
    deviations = {} if mapped is None else mapped.deviations
    return {
        "checkpoint": {"path": str(opened.path), "kind": opened.kind, "sha256": opened.sha256},
        "hardware": hardware_dict(spec),
        "out": None if out is None else str(out),
        "weights": {
            "on_arrays": plan.weights_on_arrays,
            "total": plan.weights,
            "fraction_on_arrays": plan.fraction_on_arrays,
        },
        "cells": plan.cells,
        "conversions": plan.conversions,
        "programming": [report.to_dict() for report in total(reports.values())],
        "layers": [
            {
                "name": layer.name,
                "out_features": layer.tiling.out_features,
                "in_features": layer.tiling.groups * layer.tiling.block_inputs,
                "groups": layer.tiling.groups,
                "bits": layer.tiling.bits,
                "cell_bits": layer.tiling.cell_bits,
                "slices": layer.tiling.slices,
                "copies": layer.tiling.copies,
                "tiles": layer.tiling.tiles,
                "cells": layer.tiling.cells,
                "conversions": layer.conversions,
                "utilisation": layer.tiling.utilisation,
                "programming_error": errors.get(layer.name),
                "deviation": deviations[layer.name].to_dict() if layer.name in deviations else None,
                "programming": reports[layer.name].to_dict() if layer.name in reports else None,
            }
            for layer in plan.mapped
        ],
        "remarks": list(plan.remarks),
        "digital": [
            {"name": d.name, "shape": list(d.shape), "reason": d.reason, "weights": d.weights} for d in plan.digital
        ],
    }
