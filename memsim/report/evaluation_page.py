"""The report of an evaluation: one page from what `memsim eval --json` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memsim.evaluation.verdicts import noise_note, worst_layers
from memsim.report import figures
from memsim.report.page import Html, cards, document, heading, note, paragraph, row, table, verdict
from memsim.report.page import figures as pictures
from memsim.report.sections import (
    SYNTHETIC,
    Result,
    budget_section,
    cost_section,
    hardware_section,
    hardware_title,
    interval_name,
    loss_cells,
    loss_head,
    percent,
    run_section,
    seeds_of,
    speech_of,
    verdicts_of,
)
from memsim.spec import effect_label
from memsim.units import counted, si


def evaluation_page(facts: Result, command: str) -> str:
    """The page. `facts` is the result; its budget, ablation, sensitivity and cost are shown where it has them.

    `command` is what to type to repeat it.
    """
    data = facts["data"]
    hardware = hardware_title(facts["hardware"])
    title = f"{Path(facts['checkpoint']['path']).name} on {hardware}: {data['name']} {data['split']}"
    blocks = [
        paragraph(f"{speech_of(facts)}."),
        verdict("warn", SYNTHETIC) if data["synthetic"] else Html(""),
        *verdicts_of(facts),
        _headline(facts),
        *_scores(facts),
        *(_ablation(facts["ablation"], facts.get("full_precision")) if "ablation" in facts else ()),
        *(budget_section(facts["budget"]) if "budget" in facts else ()),
        *_clips(facts),
        *(_sensitivity(facts["sensitivity"], facts.get("budget")) if "sensitivity" in facts else ()),
        *(cost_section(facts["cost"]) if "cost" in facts else ()),
        *run_section(facts["checkpoint"], seeds_of(facts), command),
        *hardware_section(facts["hardware"]),
    ]
    return document(title, blocks)


def _headline(facts: Result) -> Html:
    intervals, unusable = facts["intervals"], facts.get("unusable", {})
    confidence = interval_name(facts)
    values = []
    for name in ("mapped", "digital", "full_precision"):
        if name in intervals["wer"]:
            own = intervals["wer"][name]
            detail = f"{confidence} {percent(own['low'])} to {percent(own['high'])} %"
            values.append((f"WER {figures.SYSTEMS[name]}", f"{percent(own['value'])} %", detail))
    for name in ("digital", "full_precision"):
        compared = intervals.get(f"to_{name}")
        if compared is not None and compared["relative"] is not None:
            own = compared["relative"]
            high = "unbounded" if own["high"] is None else f"{percent(own['high'], 1, signed=True)} %"
            detail = f"{confidence}, paired: {percent(own['low'], 1, signed=True)} to {high}"
            title = f"mapped against {figures.SYSTEMS[name]}, relative"
            values.append((title, f"{percent(own['value'], 1, signed=True)} %", detail))
        elif compared is not None and unusable.keys() & {name, "mapped"}:
            which = name if name in unusable else "mapped"
            title = f"mapped against {figures.SYSTEMS[name]}, relative"
            values.append((title, "unusable", f"{figures.SYSTEMS[which]}: {unusable[which]}"))
    if "cost" in facts:
        cost = facts["cost"]
        detail = "an estimate, for converters, cells and programming"
        if cost["joules"]["cells"] is None:
            detail = "an estimate, for converters alone"
        values.append(("energy for a second of audio", si(cost["joules"]["total"], "J"), detail))
    return cards(values)


def _scores(facts: Result) -> list[Html]:
    intervals, mapped = facts["intervals"], facts["mapped"]
    rows: list[Sequence[str]] = []
    for name in ("full_precision", "digital", "mapped"):
        if name not in intervals["wer"]:
            continue
        own = intervals["wer"][name]
        interval = f"{percent(own['low'])} to {percent(own['high'])}"
        if name == "mapped":
            wer = mapped["wer"]
            spread = [percent(wer["std"]), percent(wer["min"]), percent(wer["max"])]
            label = f"mapped, {counted(len(mapped['trials']), 'chip')}"
            counts = [percent(mapped["cer"]["mean"]), "", "", "", *loss_cells(mapped)]
            rows.append([label, percent(wer["mean"]), interval, *spread, *counts])
        else:
            rows.append([figures.SYSTEMS[name], percent(own["value"]), interval, "", "", "", *_counts(facts[name])])
    compared = [
        [
            f"mapped less {figures.SYSTEMS[name]}",
            percent(own["difference"]["value"], signed=True),
            f"{percent(own['difference']['low'], signed=True)} to {percent(own['difference']['high'], signed=True)}",
            f"{own['probability_worse']:.2f}",
        ]
        for name in ("digital", "full_precision")
        if (own := intervals.get(f"to_{name}")) is not None
    ]
    chips = [[f"{trial['seed']}", percent(trial["wer"]), *_counts(trial)] for trial in mapped["trials"]]
    confidence = f"{intervals['confidence']:.0%} interval"
    counts = ["CER %", "substitutions", "deletions", "insertions", *loss_head(facts)]
    head = ["", "WER %", confidence, "std over chips", "min", "max", *counts]
    return [
        heading("Word error rate"),
        pictures([("word error rates with intervals", figures.wers(facts))], "large"),
        table(head, rows),
        table(["paired", "WER %", confidence, "probability of more errors"], compared),
        note(
            f"Intervals are bootstrap percentiles over {intervals['over']}; differences are paired, utterance by "
            "utterance. The spread over chips is the standard deviation of their WERs, which one chip has not."
        ),
        heading("Chips", level=3),
        table(["seed", "WER %", *counts], chips),
        note(f"Real-time factor of the simulation: {facts['real_time_factor']:.3f} (no speed of a chip)"),
    ]


def _counts(score: Mapping[str, Any]) -> list[str]:
    errors = [f"{score[kind]:,}" for kind in ("substitutions", "deletions", "insertions")]
    return [percent(score["cer"]), *errors, *loss_cells(score)]


def _ablation(steps: Sequence[Result], full_precision: Result | None) -> list[Html]:
    before = None if full_precision is None else full_precision["wer"]
    rows: list[Sequence[str]] = []
    if full_precision is not None:
        rows.append(["none: full precision", percent(before), "", percent(full_precision["cer"]), ""])
    for step in steps:
        mean = step["wer"]["mean"]
        added = "" if before is None else percent(mean - before, signed=True)
        std = percent(step["wer"]["std"])
        rows.append([effect_label(step["effect"]), percent(mean), std, percent(step["cer"]["mean"]), added])
        before = mean
    drawn = figures.ablation(steps, None if full_precision is None else full_precision["wer"])
    return [
        heading("Ablation"),
        pictures([("WER by effect", drawn)], "large"),
        table(["with effects up to", "WER %", "std over chips", "CER %", "adds to WER %"], rows),
    ]


def _clips(facts: Result) -> list[Html]:
    """Of every layer, where converters clip at all."""
    layers = {
        name: {kind.upper(): 100 * rate for kind, rate in rates.items() if rate is not None}
        for name, rates in facts["clip_rate_by_layer"].items()
    }
    kinds = [kind for kind in ("DAC", "ADC") if all(kind in rates for rates in layers.values())]
    if not layers or not kinds:
        return []
    worst = sorted(layers.items(), key=lambda layer: -max(layer[1].values()))
    whole = ["all layers", *(percent(facts["clip_rate"][kind.lower()], 3) for kind in kinds)]
    rows = [[name, *(f"{rates[kind]:.3f}" for kind in kinds)] for name, rates in worst]
    return [
        heading("Clipping"),
        pictures(
            [("clip rates of layers", figures.layer_bars(worst, "conversions clipped (%)", "layers, worst first"))],
            "large",
        ),
        table(["layer", *(f"{kind} %" for kind in kinds)], [row(whole, "all"), *rows]),
        note("Conversions beyond full scale: over all layers of all chips, by layer on the last chip."),
    ]


def _sensitivity(sensitivity: Result, budget: Result | None) -> list[Html]:
    digital, layers = sensitivity["digital"], sensitivity["layers"]
    before, loss = digital["loss"], f"{sensitivity['loss_name']} loss"
    products = {layer["name"]: percent(layer["error"]) for layer in budget["layers"]} if budget else {}

    def cells(layer: Result) -> list[str]:
        added = layer.get("added")
        if added is None:
            return ["", "", ""]
        ends = f"{percent(added['low'], signed=True)} to {percent(added['high'], signed=True)}"
        verdict = "noise" if layer["within_noise"] else "worst" if layer["may_be_worst"] else ""
        return [percent(added["value"], signed=True), ends, verdict]

    bars = [(layer["name"], {"adds": 100 * (layer["loss"] / before - 1) if before else 0.0}) for layer in layers]
    rows = [
        [
            *(layer["name"], percent(layer["wer"]), f"{layer['loss']:.4f}", *cells(layer)),
            *([products.get(layer["name"], "")] if budget else []),
        ]
        for layer in layers
    ]
    whole = [
        "none: digital, quantised",
        percent(digital["wer"]),
        f"{before:.4f}",
        "",
        "",
        "",
        *([""] if budget else []),
    ]
    drawn = figures.layer_bars(bars, f"adds to the {loss} (%)", "only this layer on hardware")
    head = ["only this layer on hardware", "WER %", loss, f"adds to {loss} %"]
    head += [f"{sensitivity['confidence']:.0%} interval", "", *(["product error %"] if budget else [])]
    return [
        heading("Sensitivity"),
        paragraph(f"{worst_layers(sensitivity, budget)}."),
        pictures([("sensitivity of layers", drawn)], "large"),
        table(head, [row(whole, "all"), *rows]),
        note(f"{noise_note(sensitivity)}."),
    ]
