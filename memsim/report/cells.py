"""Cells of tables on evaluations and costs, from results as `--json` writes them, for consoles and pages alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memsim.config.changes import setting_text
from memsim.evaluation.measure import CER, WER, Measure
from memsim.hardware import effect_label
from memsim.report.text import percent
from memsim.units import counted, duration, si

Result = Mapping[str, Any]


def measures_of(facts: Result) -> list[Measure]:
    """The measures of a result, the one that networks are compared by first; those of speech, which it leaves out."""
    return [Measure(**each) for each in facts["measures"]] if "measures" in facts else [WER, CER]


def items_of(facts: Result) -> str:
    """The number of items: `80 utterances`."""
    data = facts["data"]
    return counted(data["items"], data["item"]) if "item" in data else counted(data["utterances"], "utterance")


def value_text(key: str, value: object) -> str:
    """Return a value as `--set` takes it, but a time in the unit that fits, and the size of an array as `64 x 64`."""
    if key.endswith("_seconds") and isinstance(value, int | float):
        return duration(value)
    if isinstance(value, Mapping) and value.keys() == {"rows", "cols"}:
        return f"{value['rows']} x {value['cols']}"
    return setting_text(value)


def interval_name(facts: Result) -> str:
    """Name the intervals of a result: `95% interval over 80 utterances, of these 3 chips`."""
    chips, confidence = len(facts["mapped"]["trials"]), facts["intervals"]["confidence"]
    of = f"these {chips} chips" if chips > 1 else "this chip"
    return f"{confidence:.0%} interval over {items_of(facts)}, of {of}"


def ablation_head(measures: Sequence[Measure], spread: str) -> list[str]:
    """Return the titles of the columns of `ablation_rows`; `spread` is that of the standard deviation."""
    measure, *others = measures
    return [
        "non-idealities up to",
        measure.title,
        spread,
        *(other.title for other in others),
        f"adds to {measure.title}",
    ]


def ablation_rows(
    steps: Sequence[Result], full_precision: Result | None, measures: Sequence[Measure]
) -> list[list[str]]:
    """Return the measures with the effects switched on one after the other, in their order."""
    measure, *others = measures
    rows, before = [], None
    if full_precision is not None:
        before = full_precision[measure.key]
        rates = [other.show(full_precision[other.key]) for other in others]
        rows.append(["none: full precision", measure.show(before), "", *rates, ""])
    for step in steps:
        own = step[measure.key]
        added = "" if before is None else measure.show(own["mean"] - before, signed=True)
        rates = [other.show(step[other.key]["mean"]) for other in others]
        rows.append([effect_label(step["effect"]), *(measure.show(own[key]) for key in ("mean", "std")), *rates, added])
        before = own["mean"]
    return rows


def sensitivity_head(found: Result, measure: Measure) -> list[str]:
    """Return the titles of the columns of `sensitivity_row`."""
    loss, interval = f"{found['loss_name']} loss", f"{found['confidence']:.0%} interval"
    return ["only this layer on hardware", measure.title, loss, f"adds to {loss} %", interval, ""]


def sensitivity_row(name: str, layer: Result, measure: Measure) -> list[str]:
    """Return the measure and the loss with one layer on hardware, or (the entry `digital`) with none."""
    row = [name, measure.show(layer[measure.key]), f"{layer['loss']:.4f}"]
    if (added := layer.get("added")) is None:
        return [*row, "", "", ""]
    ends = f"{percent(added['low'], signed=True)} to {percent(added['high'], signed=True)}"
    verdict = "noise" if layer["within_noise"] else "worst" if layer["may_be_worst"] else ""
    return [*row, percent(added["value"], signed=True), ends, verdict]


def circuit_rows(cost: Result, dac: str, adc: str) -> list[list[str]]:
    """Return energy, share, conversions, number and area of each circuit, and of `all` last.

    `dac` and `adc` name the converters.
    """
    layers, joules, area = cost["layers"], cost["joules"], cost["square_millimetres"]
    circuits = {
        dac: ("dac", sum(layer["dac_conversions"] for layer in layers), cost["dacs"], area["dacs"]),
        adc: ("adc", sum(layer["adc_conversions"] for layer in layers), cost["adcs"], area["adcs"]),
        "cells": ("cells", None, cost["cells"], area["cells"]),
        "programming": ("programming", None, None, None),
    }
    rows = [
        [
            name,
            "unknown" if joules[circuit] is None else si(joules[circuit], "J"),
            percent(cost["shares"][circuit], 1),
            "" if conversions is None else si(conversions),
            "" if count is None else f"{count:,}",
            "" if millimetres is None else f"{millimetres:.3g}",
        ]
        for name, (circuit, conversions, count, millimetres) in circuits.items()
    ]
    return [*rows, ["all", si(joules["total"], "J"), "", "", counted(cost["arrays"], "array"), f"{area['total']:.3g}"]]


NO_WHOLE_CHIP = (
    "no whole chip beside a digital one: that counts the operations of a network while it runs, and memsim cannot run "
    "this one; in Python memsim.estimate_cost(chip, batch) takes any"
)
"""Why the cost of a network that memsim cannot run is that of its arrays alone."""

UNITS = {"audio_second": "a second of audio", "example": "an example", "vector": "one input vector of each layer"}
"""The units of a cost in words."""


def currents_of_cells(cost: Result) -> str:
    """Say which inputs the energy of the cells is for, or why it is unknown, and which examples were counted."""
    said = _currents_of_cells(cost)
    return f"an example: of the batch {cost['batch']}; {said}" if "batch" in cost else said


def _currents_of_cells(cost: Result) -> str:
    if cost["joules"]["cells"] is None:
        return "cells: unknown, as their currents need programmed cells and known inputs"
    if cost.get("examples") is not None:
        return "cells: their currents in that batch"
    if cost["audio_seconds"] is None:
        return "cells: their currents at the inputs stored in the checkpoint"
    return f"cells: their currents in {cost['audio_seconds']:.0f} s of speech, read one utterance at a time"


def layer_cost(layer: Result) -> tuple[list[str], str]:
    """Return name, energy, the shares of DAC, ADC and cells, vectors and latency of a layer; and its efficiency."""
    joules, efficiency = layer["joules"], layer["tops_per_watt"]
    shares = [
        "" if joules[circuit] is None or not joules["total"] else percent(joules[circuit] / joules["total"], 1)
        for circuit in ("dac", "adc", "cells")
    ]
    cells = [layer["name"], si(joules["total"], "J"), *shares, f"{layer['vectors']:.4g}", si(layer["seconds"], "s")]
    return cells, "" if efficiency is None else f"{efficiency:.3g}"


def trim_cost(cost: Result) -> str | None:
    """Return the energy of fitting the trims once to reads of the chip; None for a chip without."""
    trims = cost.get("trims", {"vectors": 0})
    if not trims["vectors"]:
        return None
    return f"{si(trims['joules'], 'J')} in {si(trims['seconds'], 's')}, by {trims['vectors']:,} input vectors"


def programming_cost(cost: Result) -> str | None:
    """Return the energy of programming the chip once, beside that of reading; None where it is not known."""
    programming = cost["programming"]
    if programming["joules"] is None:
        return None
    text = si(programming["joules"], "J")
    if (audio := programming["audio_seconds_of_as_much_reading"]) is not None:
        text += (
            f", as much as reading {duration(audio)} of audio; above it is spread over "
            f"{duration(programming['spread_over_audio_seconds'])} of audio"
        )
    return text
