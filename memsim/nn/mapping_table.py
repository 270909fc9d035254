"""The table of the layers on arrays and the digital ones, for `print`, notebooks and the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import fmean

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table

from memsim.crossbar.programming_report import ProgrammingReport, total
from memsim.crossbar.tiling import Tiling
from memsim.nn.deviation import Deviation, largest, worst
from memsim.nn.plan import MappedLayer, Plan
from memsim.report.text import note
from memsim.units import counted


def mapping_parts(
    plan: Plan,
    errors: Mapping[str, float],
    reports: Mapping[str, ProgrammingReport],
    deviations: Mapping[str, Deviation],
    *,
    verbose: bool = False,
) -> list[RenderableType]:
    """Return the tables of the layers on arrays and of their programming, and the line of the largest deviations.

    Args:
        plan: the layers.
        errors: relative programming errors by layer; empty where nothing is programmed.
        reports: the programming of each layer, for layers on real cells.
        deviations: the deviations of the products of layers whose inputs are known.
        verbose: give each layer a row of its own.
    """
    parts: list[RenderableType] = [_layer_table(plan, errors, verbose)]
    if errors:
        parts.append(note("error: programmed against intended weights, relative (Frobenius norm)"))
    if reports:
        parts.append(_programming_table(reports))
        parts.append(
            note(
                "time: one pulse or read after the other; spread: standard deviation of the cells' currents by level, "
                "in % of the mean LRS current"
            )
        )
    if deviations:
        parts.append(_deviations_line(deviations))
    return parts


def summary_lines(plan: Plan, *, verbose: bool = False) -> list[str]:
    """Return how much is on arrays, and what stays digital and why, a line each; with `verbose`, by every name."""
    weights = sum(layer.tiling.weights for layer in plan.mapped)
    lines = [
        f"{counted(len(plan.mapped), 'layer')}, {counted(weights, 'weight')} on {counted(plan.cells, 'cell')} in "
        f"{counted(plan.arrays, 'array')}; {counted(plan.conversions, 'conversion')} for one input of each layer",
        f"{plan.fraction_on_arrays:.1%} of the {plan.weights:,} weights in matrices and tables are on arrays",
    ]
    for reason, names in _by_reason(plan, verbose).items():
        most = len(names) if verbose else 4
        shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
        share = sum(layer.weights for layer in plan.digital if layer.reason == reason) / max(1, plan.weights)
        lines.append(f"digital: {shown} ({reason}){f', {share:.1%} of the weights' if share >= 0.0005 else ''}")
    return lines


def _layer_table(plan: Plan, errors: Mapping[str, float], verbose: bool) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", overflow="fold", min_width=16)
    for column in ["layers", "out x in", "bits", "planes", "arrays", "cells", "used", *(["error"] if errors else [])]:
        table.add_column(column, justify="right", no_wrap=True)
    for name, layers in _rows(plan, verbose).items():
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
    return table


def _programming_table(reports: Mapping[str, ProgrammingReport]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("programming", no_wrap=True)
    for column in ("cells", "pulses per cell", "most", "verify reads", "failed", "time", "energy"):
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


def _deviations_line(deviations: Mapping[str, Deviation]) -> str:
    """Return the line that names the layers whose products err most on calibration inputs."""
    first = next(iter(deviations.values()))
    exact = "the quantised digital ones" if first.to_full_precision is None else "full precision"
    shown = ", ".join(f"{name} {largest(deviations[name]):.1%}" for name in worst(deviations)[:3])
    return f"deviation of the products from {exact} on calibration inputs, largest: {shown}"


def _rows(plan: Plan, verbose: bool) -> dict[str, list[MappedLayer]]:
    """Return layers by row: layers of one tiling whose names differ in numbers only share a row."""
    rows: dict[tuple[str, object], list[MappedLayer]] = {}
    for layer in plan.mapped:
        name = layer.name if verbose else _pattern(layer.name)
        rows.setdefault((name, layer.tiling), []).append(layer)
    return {(name if len(layers) > 1 else layers[0].name): layers for (name, _), layers in rows.items()}


def _by_reason(plan: Plan, verbose: bool) -> dict[str, list[str]]:
    grouped: dict[str, dict[str, None]] = {}
    for layer in plan.digital:
        grouped.setdefault(layer.reason, {})[layer.name if verbose else _pattern(layer.name)] = None
    return {reason: list(names) for reason, names in grouped.items()}


def _shape(tiling: Tiling) -> str:
    """Return the shape of a matrix, or the number and shape of the blocks on its diagonal."""
    block = f"{tiling.out_features // tiling.groups} x {tiling.block_inputs}"
    return block if tiling.groups == 1 else f"{tiling.groups} of {block}"


def _short(count: int) -> str:
    """Return `count` to three digits: 1,179,648 is 1.18 M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _pattern(name: str) -> str:
    """Return `name` with its numbers as *: `blocks.3.norm` is `blocks.*.norm`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
