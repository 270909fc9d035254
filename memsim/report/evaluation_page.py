"""The report of an evaluation: one page from what `memsim eval --json` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memsim.evaluation.verdicts import noise_note, worst_layers
from memsim.report import figures
from memsim.report.answers import evaluation_answer
from memsim.report.cells import (
    Result,
    ablation_head,
    ablation_rows,
    interval_name,
    measures_of,
    sensitivity_head,
    sensitivity_row,
)
from memsim.report.page import Html, cards, document, heading, note, opening, paragraph, row, table
from memsim.report.page import figures as pictures
from memsim.report.sections import (
    budget_section,
    cost_section,
    energy_card,
    hardware_section,
    hardware_title,
    loss_cells,
    loss_head,
    name_of,
    run_section,
    seeds_of,
    speech_of,
    verdicts_of,
)
from memsim.report.text import percent
from memsim.units import counted


def evaluation_page(facts: Result, command: str | None) -> str:
    """Return the page of the result `facts`, with its budget, ablation, sensitivity and cost where it has them.

    `command` repeats the evaluation.
    """
    hardware = hardware_title(facts["hardware"])
    title = f"{Path(facts['checkpoint']['path']).name} on {hardware}: {name_of(facts)}"
    blocks = [
        opening(*evaluation_answer(facts)),
        paragraph(f"{speech_of(facts)}."),
        *verdicts_of(facts),
        _headline(facts),
        *_scores(facts),
        *(_ablation(facts) if "ablation" in facts else ()),
        *(budget_section(facts["budget"]) if "budget" in facts else ()),
        *_clips(facts),
        *(_sensitivity(facts) if "sensitivity" in facts else ()),
        *(cost_section(facts["cost"]) if "cost" in facts else ()),
        *run_section(facts["checkpoint"], seeds_of(facts), command),
        *hardware_section(facts["hardware"]),
    ]
    return document(title, blocks)


def _headline(facts: Result) -> Html:
    intervals, unusable = facts["intervals"], facts.get("unusable", {})
    confidence, measure = interval_name(facts), measures_of(facts)[0]
    unit = " %" if measure.in_percent else ""
    values = []
    for name in ("mapped", "digital", "full_precision"):
        if name in intervals[measure.key]:
            own = intervals[measure.key][name]
            detail = f"{confidence} {measure.show(own['low'])} to {measure.show(own['high'])}{unit}"
            values.append((f"{measure.name} {figures.SYSTEMS[name]}", f"{measure.show(own['value'])}{unit}", detail))
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
        values.append(energy_card(facts["cost"]))
    return cards(values)


def _scores(facts: Result) -> list[Html]:
    intervals, mapped = facts["intervals"], facts["mapped"]
    measure, *others = measures_of(facts)
    kinds = [kind for kind in ("substitutions", "deletions", "insertions") if kind in facts["digital"]]

    def counts_of(score: Mapping[str, Any]) -> list[str]:
        rates = [other.show(score[other.key]) for other in others]
        return [*rates, *(f"{score[kind]:,}" for kind in kinds), *loss_cells(score)]

    rows: list[Sequence[str]] = []
    for name in ("full_precision", "digital", "mapped"):
        if name not in intervals[measure.key]:
            continue
        own = intervals[measure.key][name]
        interval = f"{measure.show(own['low'])} to {measure.show(own['high'])}"
        if name == "mapped":
            over_chips = mapped[measure.key]
            mean, *spread = (measure.show(over_chips[key]) for key in ("mean", "std", "min", "max"))
            label = f"mapped, {counted(len(mapped['trials']), 'chip')}"
            rates = [other.show(mapped[other.key]["mean"]) for other in others]
            rows.append([label, mean, interval, *spread, *rates, *[""] * len(kinds), *loss_cells(mapped)])
        else:
            cells = counts_of(facts[name])
            rows.append([figures.SYSTEMS[name], measure.show(own["value"]), interval, "", "", "", *cells])
    compared = [
        [
            f"mapped less {figures.SYSTEMS[name]}",
            measure.show(own["difference"]["value"], signed=True),
            " to ".join(measure.show(own["difference"][end], signed=True) for end in ("low", "high")),
            f"{own['probability_worse']:.2f}",
        ]
        for name in ("digital", "full_precision")
        if (own := intervals.get(f"to_{name}")) is not None
    ]
    chips = [[f"{trial['seed']}", measure.show(trial[measure.key]), *counts_of(trial)] for trial in mapped["trials"]]
    confidence = f"{intervals['confidence']:.0%} interval"
    counts = [*(other.title for other in others), *kinds, *loss_head(facts)]
    head = ["", measure.title, confidence, "std over chips", "min", "max", *counts]
    item = facts["data"].get("item", "utterance")
    worse = "of more errors" if measure.lower_is_better else f"of lower {measure.name}"
    title = "Word error rate" if measure.key == "wer" else measure.name.capitalize()
    speed = []
    if "real_time_factor" in facts:
        speed = [note(f"Real-time factor of the simulation: {facts['real_time_factor']:.3f} (not the speed of a chip)")]
    return [
        heading(title),
        pictures([(f"{title.lower()}s with intervals", figures.scores(facts, measure))], "large"),
        table(head, rows),
        table(["paired", measure.title, confidence, f"probability {worse}"], compared),
        note(
            f"Intervals are bootstrap percentiles over {intervals['over']}; differences are paired, {item} by {item}. "
            f"The spread over chips is the standard deviation of the {measure.name} over chips; a single chip has none."
        ),
        heading("Chips", level=3),
        table(["seed", measure.title, *counts], chips),
        *speed,
    ]


def _ablation(facts: Result) -> list[Html]:
    steps, full_precision, measures = facts["ablation"], facts.get("full_precision"), measures_of(facts)
    measure = measures[0]
    first = None if full_precision is None else full_precision[measure.key]
    return [
        heading("Ablation"),
        pictures([(f"{measure.name} by non-ideality", figures.ablation(steps, first, measure))], "large"),
        table(ablation_head(measures, "std over chips"), ablation_rows(steps, full_precision, measures)),
    ]


def _clips(facts: Result) -> list[Html]:
    """The clip rates of all layers, where converters clip at all."""
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


def _sensitivity(facts: Result) -> list[Html]:
    sensitivity, budget, measure = facts["sensitivity"], facts.get("budget"), measures_of(facts)[0]
    digital, layers = sensitivity["digital"], sensitivity["layers"]
    before, loss = digital["loss"], f"{sensitivity['loss_name']} loss"
    products = {layer["name"]: percent(layer["error"]) for layer in budget["layers"]} if budget else {}

    def cells(name: str, layer: Result) -> list[str]:
        return [*sensitivity_row(name, layer, measure), *([products.get(name, "")] if budget else [])]

    bars = [(layer["name"], {"adds": 100 * (layer["loss"] / before - 1) if before else 0.0}) for layer in layers]
    rows = [cells(layer["name"], layer) for layer in layers]
    whole = cells("none: digital, quantised", digital)
    drawn = figures.layer_bars(bars, f"adds to the {loss} (%)", "only this layer on hardware")
    head = [*sensitivity_head(sensitivity, measure), *(["product error %"] if budget else [])]
    return [
        heading("Sensitivity"),
        paragraph(f"{worst_layers(sensitivity, budget)}."),
        pictures([("sensitivity of layers", drawn)], "large"),
        table(head, [row(whole, "all"), *rows]),
        note(f"{noise_note(sensitivity)}."),
    ]
