"""Sections of reports, made from plain results as `--json` writes them."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import yaml

from memsim.config.changes import Changes, title, without
from memsim.evaluation.options import describe_decoding
from memsim.hardware import effect_label
from memsim.hardware.facts import unfitted_note
from memsim.report import chip_figures, figures
from memsim.report.cells import (
    NO_WHOLE_CHIP,
    UNITS,
    Result,
    circuit_rows,
    currents_of_cells,
    items_of,
    layer_cost,
    programming_cost,
    trim_cost,
)
from memsim.report.chip_cells import (
    TORNADO_HEAD,
    area_text,
    break_even_text,
    chip_head,
    chip_rows,
    interval_text,
    placement_text,
    public_text,
    schedule_text,
    tornado_rows,
    verdict_text,
)
from memsim.report.page import Html, facts, folded, heading, note, row, table, verbatim, warning
from memsim.report.page import figures as pictures
from memsim.report.text import percent
from memsim.units import counted, prefix_of, si
from memsim.version import __version__


def speech_of(facts: Result) -> str:
    """Describe an evaluation: its speech, its number of chips, and its decoding."""
    data, chips = facts["data"], len(facts["mapped"]["trials"])
    if "item" in data:
        return f"{items_of(facts)}; {counted(chips, 'simulated chip')}"
    return (
        f"{items_of(facts)}, {counted(data['words'], 'word')}, {data['seconds']:.0f} s of "
        f"{'synthetic ' if data['synthetic'] else ''}speech; {counted(chips, 'simulated chip')}; "
        f"{describe_decoding(facts['decoding'])}"
    )


def name_of(facts: Result) -> str:
    """The name of the data, and of its split where it has several."""
    return " ".join(filter(None, (facts["data"]["name"], facts["data"].get("split"))))


def hardware_title(hardware: Result, *swept: str) -> str:
    """Return the hardware's name and the keys that were changed, except for those `swept`."""
    changes = Changes(hardware.get("base"), hardware.get("changed", {}))
    return title(str(hardware["name"]), without(changes, *swept))


def verdicts_of(facts: Result) -> list[Html]:
    """Return the warnings of a result, such as unusable networks, and of laws that are not fitted to measurements."""
    unfitted = facts["hardware"].get("unfitted")
    laws = [unfitted_note(unfitted)] if unfitted else []
    return [warning(text) for text in (*facts.get("warnings", ()), *laws)]


def seeds_of(facts: Result) -> str:
    """Return the seeds of the chips of an evaluation, as text."""
    trials = facts["mapped"]["trials"]
    return ", ".join(str(trial["seed"]) for trial in trials) + (" (one per chip)" if len(trials) > 1 else "")


def loss_head(facts: Result) -> list[str]:
    """Return the title of the column of mean losses, where an evaluation has them."""
    mapped = facts["mapped"]
    return [f"{mapped['loss_name']} loss"] if "loss" in mapped else []


def loss_cells(score: Result) -> list[str]:
    """Return the cell of that column: the mean over chips, or the loss of one network."""
    if "loss" not in score:
        return []
    loss = score["loss"]
    return [f"{loss['mean'] if isinstance(loss, Mapping) else loss:.4f}"]


def budget_section(budget: Result) -> list[Html]:
    """Return the error budget of the products, by non-ideality and by layer."""
    effects, layers = budget["effects"], budget["layers"]
    weights = "full-precision" if budget["against"] == "full precision" else "quantised"
    labels = [effect_label(step["effect"]) for step in effects]
    totals = [(layer["name"], {"error": 100 * layer["error"]}) for layer in layers]
    rows = [
        [layer["name"], percent(layer["error"]), *(percent(step["added"]) for step in layer["effects"])]
        for layer in layers
    ]
    whole = ["all layers", percent(budget["error"]), *(percent(step["added"]) for step in effects)]
    return [
        heading("Error budget"),
        pictures(
            [
                ("error added by non-idealities", figures.effects(budget)),
                ("layers with the largest error", figures.layer_bars(totals, "error (%)", "layers, worst first")),
            ],
            "large",
        ),
        table(["layer", "error %", *(f"{name} %" for name in labels)], [row(whole, "all"), *rows]),
        note(
            f"Relative error (L2) of the products against those with the {weights} weights, on the stored "
            "calibration inputs; over all layers the root mean square. Non-idealities are switched on one by one; "
            "each adds the root of the difference of squares, which is negative if the error becomes smaller. "
            "`memsim eval --sensitivity` measures how much each layer's error harms the recogniser."
        ),
    ]


def cost_section(cost: Result) -> list[Html]:
    """Return energy, time and area, by circuit and by layer."""
    of = UNITS[cost["per"]]
    layers = cost["layers"]
    *rows, total = circuit_rows(cost, "DACs and row drivers", "ADCs")
    known = {"DAC": "dac", "ADC": "adc"} | ({} if cost["joules"]["cells"] is None else {"cells": "cells"})
    unit, scale = prefix_of(max((layer["joules"]["total"] for layer in layers), default=0.0))
    bars = [
        (layer["name"], {name: layer["joules"][circuit] / scale for name, circuit in known.items()}) for layer in layers
    ]
    by_layer = []
    for layer in layers:
        cells, efficiency = layer_cost(layer)
        by_layer.append([*cells, f"{layer['arrays']:,}", f"{layer['square_millimetres']:.3g}", efficiency])
    head = ["layer", "energy", "DAC %", "ADC %", "cells %", "vectors", "latency", "arrays", "mm²", "TOPS/W"]
    return [
        heading("Cost"),
        table([f"for {of}", "energy", "share %", "conversions", "circuits", "mm²"], [*rows, row(total, "all")]),
        facts(_cost_facts(cost, of)),
        pictures(
            [("energy of layers", figures.layer_bars(bars, f"energy ({unit}J)", f"energy for {of}", stacked=True))],
            "large",
        ),
        table(head, by_layer),
        note(
            "An estimate from the costs of published circuits that the hardware spec holds under cost, for "
            f"comparing designs. Assumed: {'; '.join(cost['assumptions'])}."
        ),
        *(chip_section(cost["chip"]) if "chip" in cost else [note(f"{NO_WHOLE_CHIP}.")]),
    ]


def energy_card(cost: Result) -> tuple[str, str, str]:
    """Return the card of the energy: that of the whole chip where it is known, else that of the arrays."""
    of = UNITS[cost["per"]]
    if (chip := cost.get("chip")) is not None:
        ends = " to ".join(si(chip["joules"][end], "J") for end in ("low", "high"))
        return f"energy for {of}, whole chip", si(chip["joules"]["nominal"], "J"), f"an estimate; all prices: {ends}"
    known = "converters and cells" if cost["joules"]["cells"] is not None else "converters alone"
    return f"energy for {of}", si(cost["joules"]["total"], "J"), f"an estimate, for {known}"


def chip_section(chip: Result) -> list[Html]:
    """Return the whole chip beside the digital alternative: energy, area, times, floor plan, and prices that matter."""
    rows = chip_rows(chip)
    kept: dict[str, list[str]] = {}
    for work in chip["placement"]["digital"]:
        kept.setdefault(work["reason"], []).append(work["name"])
    crossing = [layer["name"] for layer in chip["placement"]["layers"] if layer["link_bytes_per_vector"]]
    return [
        heading("Whole chip"),
        table(chip_head(chip), [row(cells, "all") if cells[0] == "all" else cells for cells in rows]),
        facts(
            {
                "comparison": verdict_text(chip),
                "energy": interval_text(chip["joules"], "J"),
                "area": area_text(chip["square_millimetres"]),
                "placement": placement_text(chip),
                "schedule": schedule_text(chip),
                "break-even": break_even_text(chip),
                "other processors": public_text(chip),
                "vectors that cross to another chip": ", ".join(crossing) or "none",
            }
            | {f"digital: {reason}": ", ".join(names) for reason, names in kept.items()}
        ),
        pictures(
            [("floor plan", chip_figures.floor_plan(chip)), ("prices that matter", chip_figures.tornado(chip))], "large"
        ),
        table(TORNADO_HEAD, tornado_rows(chip, len(chip["tornado"]))),
        note(f"{'; '.join(chip['assumptions'])}. Ratio: energy divided by that of int8 digital at the same prices."),
    ]


def _cost_facts(cost: Result, of: str) -> dict[str, str]:
    rows = {f"latency for {of}": si(cost["seconds"], "s")}
    if cost["tops_per_watt"] is not None:
        rows["efficiency of reading"] = f"{cost['tops_per_watt']:.3g} TOPS/W, two operations per weight"
    if (programming := programming_cost(cost)) is not None:
        rows["programming the chip once"] = programming
    if (trims := trim_cost(cost)) is not None:
        rows["fitting its trims once"] = trims
    name, _, said = currents_of_cells(cost).partition(": ")
    return rows | {name: said}


def hardware_section(hardware: Result, name: str = "Hardware") -> list[Html]:
    """Return the spec, as YAML that `--hardware` takes."""
    text = yaml.safe_dump(hardware["spec"], sort_keys=False, width=100, allow_unicode=True)
    return [
        heading(name),
        facts({"spec": hardware_title(hardware), "sha256": hardware["sha256"]}),
        folded("Every key of the spec", verbatim(text.replace(": null\n", ": none\n"))),
    ]


def run_section(checkpoint: Result, seeds: str, command: str | None) -> list[Html]:
    """Return the command, the checkpoint, the seeds and the versions with which a run can be repeated."""
    import numpy as np
    import torch

    rows = {
        "checkpoint": f"{checkpoint['path']} ({checkpoint['kind']}), sha256 {checkpoint['sha256']}",
        "seeds": seeds,
        "versions": f"memsim {__version__}, Python {platform.python_version()}, torch {torch.__version__}, numpy "
        f"{np.__version__}, {platform.system()} {platform.machine()}",
    }
    return [heading("To repeat it"), *([verbatim(command)] if command else []), facts(rows)]
