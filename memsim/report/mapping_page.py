"""The report of a mapping: a page from the values that `memsim map --json` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memsim.report import figures
from memsim.report.answers import mapping_answer
from memsim.report.cells import Result
from memsim.report.page import Html, cards, document, facts, heading, note, opening, table
from memsim.report.page import figures as pictures
from memsim.report.sections import (
    budget_section,
    cost_section,
    energy_card,
    hardware_section,
    hardware_title,
    run_section,
    verdicts_of,
)
from memsim.report.text import percent
from memsim.units import counted, si


def mapping_page(result: Result, command: str | None = None) -> str:
    """Return the page of the `result` of a mapping; its budget and cost are shown where it has them.

    `command` repeats the mapping; None without one.
    """
    checkpoint, hardware = result["checkpoint"], result["hardware"]
    blocks = [
        opening(*mapping_answer(result)),
        *verdicts_of(result),
        _headline(result),
        *_layers(result["layers"]),
        *_deviations(result["layers"]),
        *_programming(result["programming"]),
        *(budget_section(result["budget"]) if "budget" in result else ()),
        *(cost_section(result["cost"]) if "cost" in result else ()),
        *_digital(result["digital"]),
        *run_section(checkpoint, str(result["seed"]), command),
        *hardware_section(hardware),
    ]
    return document(f"{Path(checkpoint['path']).name} on {hardware_title(hardware)}", blocks)


def _headline(result: Result) -> Html:
    layers = result["layers"]
    weights = sum(_weights(layer) for layer in layers)
    values = [
        ("layers on arrays", f"{len(layers)}", counted(weights, "weight")),
        ("arrays", f"{sum(layer['tiles'] for layer in layers):,}", counted(result["cells"], "cell")),
        ("conversions", f"{result['conversions']:,}", "for one input of each layer"),
    ]
    if "budget" in result:
        values.append(("error of the products", f"{percent(result['budget']['error'])} %", "over all layers"))
    if "cost" in result:
        values.append(energy_card(result["cost"]))
    return cards(values)


def _deviations(layers: Sequence[Result]) -> list[Html]:
    """Return the table of deviations from the exact products, the worst first; nothing without calibration."""
    known = [(layer["name"], layer["deviation"]) for layer in layers if layer["deviation"] is not None]
    if not known:
        return []

    def largest(entry: tuple[str, Result]) -> float:
        full_precision = entry[1]["to_full_precision"]
        return float(entry[1]["to_digital"] if full_precision is None else full_precision)

    known.sort(key=largest, reverse=True)
    keys = ("to_full_precision", "to_digital")
    rows = [[name, *("" if own[key] is None else percent(own[key], 1) for key in keys)] for name, own in known]
    return [
        table(["layer", "from full precision %", "from digital, quantised %"], rows),
        note("Relative L2 error of a layer's product on calibration inputs, the worst layers first."),
    ]


def _weights(layer: Result) -> int:
    return int(layer["out_features"] * layer["in_features"] // layer["groups"])


def _layers(layers: Sequence[Result]) -> list[Html]:
    known = [(layer["name"], {"error": 100 * layer["programming_error"]}) for layer in layers]
    worst = sorted(known, key=lambda layer: -layer[1]["error"])
    rows = [
        [
            layer["name"],
            f"{layer['out_features']} x {layer['in_features']}"
            + (f" in {layer['groups']} blocks" if layer["groups"] > 1 else ""),
            f"{layer['bits']}",
            f"{layer['slices']}",
            f"{layer['copies']}",
            f"{layer['tiles']:,}",
            si(layer["cells"]),
            percent(layer["utilisation"], 0),
            percent(layer["programming_error"], 1),
        ]
        for layer in layers
    ]
    head = ["layer", "out x in", "bits", "planes", "copies", "arrays", "cells", "used %", "error %"]
    drawn = figures.layer_bars(worst, "error of programming (%)", "layers, worst first")
    return [
        heading("Layers"),
        pictures([("programming errors of layers", drawn)], "large"),
        table(head, rows),
        note("Error: programmed against intended weights, relative (Frobenius norm)."),
    ]


def _programming(reports: Sequence[Result]) -> list[Html]:
    rows = [
        [
            report["scheme"],
            f"{report['cells']:,}",
            f"{report['pulses_per_cell']['mean']:.2f}",
            f"{report['pulses_per_cell']['max']:,}",
            f"{report['verify_reads_per_cell']:.2f}",
            "" if report["failures"] is None else f"{report['failures']:,}",
            si(report["seconds"], "s"),
            si(report["joules"], "J"),
            ", ".join("-" if level["spread"] is None else percent(level["spread"]) for level in report["levels"]),
        ]
        for report in reports
    ]
    if not rows:
        return []
    head = ["scheme", "cells", "pulses per cell", "most", "verify reads", "failed", "time", "energy", "spread %"]
    return [
        heading("Programming"),
        table(head, rows),
        note(
            "Time: one pulse or read after the other. Spread: standard deviation of the cells' currents by level, in % "
            "of the mean LRS current."
        ),
    ]


def _digital(layers: Sequence[Result]) -> list[Html]:
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        reasons.setdefault(layer["reason"], []).append(layer["name"])
    if not reasons:
        return []
    return [heading("Digital"), facts({reason: ", ".join(names) for reason, names in reasons.items()})]
