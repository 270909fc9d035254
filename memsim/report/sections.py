"""Sections of reports, made from plain results as `--json` writes them."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from memsim.config.changes import Changes, title, without
from memsim.evaluation.measure import CER, WER, Measure
from memsim.evaluation.options import describe_decoding
from memsim.hardware import effect_label
from memsim.hardware.facts import unfitted_note
from memsim.report import figures
from memsim.report.page import Html, facts, heading, note, row, table, verbatim, verdict
from memsim.report.page import figures as pictures
from memsim.units import counted, si
from memsim.version import __version__

Result = Mapping[str, Any]

SYNTHETIC = "The speech is synthetic: this shows that the chain works, and says little of real speech"


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


def measures_of(facts: Result) -> list[Measure]:
    """The measures of a result, the one that networks are compared by first; those of speech, which it leaves out."""
    return [Measure(**each) for each in facts["measures"]] if "measures" in facts else [WER, CER]


def items_of(facts: Result) -> str:
    """The number of items: `80 utterances`."""
    data = facts["data"]
    return counted(data["items"], data["item"]) if "item" in data else counted(data["utterances"], "utterance")


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
    return [verdict("warn", text) for text in (*facts.get("warnings", ()), *laws)]


def interval_name(facts: Result) -> str:
    """Name the intervals of a result: their confidence, and the utterances and chips that they are over."""
    chips, confidence = len(facts["mapped"]["trials"]), facts["intervals"]["confidence"]
    of = f"these {chips} chips" if chips > 1 else "this chip"
    return f"{confidence:.0%} interval over {items_of(facts)}, of {of}"


def seeds_of(facts: Result) -> str:
    """Return the seeds of the chips of an evaluation, as text."""
    trials = facts["mapped"]["trials"]
    return ", ".join(str(trial["seed"]) for trial in trials) + (" (one per chip)" if len(trials) > 1 else "")


def percent(fraction: float | None, digits: int = 2, signed: bool = False) -> str:
    """Return a fraction in percent, as text; empty for None."""
    return "" if fraction is None else f"{100 * fraction:{'+' if signed else ''}.{digits}f}"


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
    of = "a second of audio" if cost["per"] == "audio_second" else "one input vector of each layer"
    joules, shares, area, layers = cost["joules"], cost["shares"], cost["square_millimetres"], cost["layers"]
    circuits = {
        "DACs and row drivers": ("dac", sum(layer["dac_conversions"] for layer in layers), cost["dacs"], area["dacs"]),
        "ADCs": ("adc", sum(layer["adc_conversions"] for layer in layers), cost["adcs"], area["adcs"]),
        "cells": ("cells", None, cost["cells"], area["cells"]),
        "programming": ("programming", None, None, None),
    }
    rows: list[Sequence[str] | Html] = [
        [
            name,
            "unknown" if joules[circuit] is None else si(joules[circuit], "J"),
            percent(shares[circuit], 1),
            "" if conversions is None else si(conversions),
            "" if count is None else f"{count:,}",
            "" if millimetres is None else f"{millimetres:.3g}",
        ]
        for name, (circuit, conversions, count, millimetres) in circuits.items()
    ]
    total = ["all", si(joules["total"], "J"), "", "", counted(cost["arrays"], "array"), f"{area['total']:.3g}"]
    known = {"DAC": "dac", "ADC": "adc"} | ({} if joules["cells"] is None else {"cells": "cells"})
    unit, scale = _scale(max((layer["joules"]["total"] for layer in layers), default=0.0))
    bars = [
        (layer["name"], {name: layer["joules"][circuit] / scale for name, circuit in known.items()}) for layer in layers
    ]
    by_layer = [
        [
            layer["name"],
            si(layer["joules"]["total"], "J"),
            *(
                "" if layer["joules"][key] is None else percent(_part(layer["joules"], key), 1)
                for key in ("dac", "adc", "cells")
            ),
            f"{layer['vectors']:.4g}",
            si(layer["seconds"], "s"),
            f"{layer['arrays']:,}",
            f"{layer['square_millimetres']:.3g}",
            "" if layer["tops_per_watt"] is None else f"{layer['tops_per_watt']:.3g}",
        ]
        for layer in layers
    ]
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
    ]


def _cost_facts(cost: Result, of: str) -> dict[str, str]:
    programming = cost["programming"]
    rows = {f"latency for {of}": si(cost["seconds"], "s")}
    if cost["tops_per_watt"] is not None:
        rows["efficiency of reading"] = f"{cost['tops_per_watt']:.3g} TOPS/W, two operations per weight"
    if programming["joules"] is not None:
        rows["programming the chip once"] = si(programming["joules"], "J")
        if (audio := programming["audio_seconds_of_as_much_reading"]) is not None:
            rows["programming the chip once"] += (
                f", as much as reading {si(audio, 's')} of audio; the table spreads it over "
                f"{programming['spread_over_audio_seconds']:,.0f} s of audio"
            )
    measured = "at the calibration inputs stored in the checkpoint"
    if cost["audio_seconds"] is not None:
        measured = f"in {cost['audio_seconds']:.0f} s of speech, read one utterance at a time"
    return rows | {"currents of cells": measured}


def _part(joules: Mapping[str, float], circuit: str) -> float | None:
    return joules[circuit] / joules["total"] if joules["total"] else None


def _scale(most: float) -> tuple[str, float]:
    """Return the SI prefix in which `most` is written, and its factor."""
    if not most:
        return "", 1.0
    number, _, prefix = si(most).partition(" ")
    return prefix, most / float(number)


def hardware_section(hardware: Result, name: str = "Hardware") -> list[Html]:
    """Return the spec, as YAML that `--hardware` takes."""
    text = yaml.safe_dump(hardware["spec"], sort_keys=False, width=100, allow_unicode=True)
    return [
        heading(name),
        facts({"spec": hardware_title(hardware), "sha256": hardware["sha256"]}),
        verbatim(text.replace(": null\n", ": none\n")),
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
