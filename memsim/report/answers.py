"""The answers that reports open with, in sentences: does it work, how sure is that, and what hurts most.

They are made from plain results as `--json` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Literal, NamedTuple

from memsim.evaluation.measure import Measure
from memsim.evaluation.verdicts import worst_layers
from memsim.hardware import effect_label
from memsim.report.cells import Result, interval_name, items_of, measures_of, value_text
from memsim.report.chip_cells import verdict_text
from memsim.report.figures import SYSTEMS
from memsim.report.text import percent
from memsim.units import counted

Kind = Literal["pass", "warn", "fail"]

SYNTHETIC = "The speech is synthetic: this shows that the chain works, and says little of real speech"

WIDE = 0.3
"""The width of an interval of relative changes from which there are too few items for a judgement."""


class Answer(NamedTuple):
    """An answer in a sentence, its kind (its colour), and what stands below it: questions with their answers."""

    kind: Kind
    said: str
    details: list[tuple[str, str]]


def evaluation_answer(facts: Result) -> Answer:
    """Return the answer of an evaluation of one point."""
    details = [("How sure", _how_sure(facts)), ("What hurts most", _what_hurts(facts))]
    if "chip" in facts.get("cost", {}):
        details.append(("Energy", f"{_sentence(verdict_text(facts['cost']['chip']))} (an estimate)."))
    return Answer(outcome(facts), _does_it_work(facts), details)


def outcome(facts: Result) -> Kind:
    """Return fail for an unusable network, warn for one that is worse than its reference beyond chance, else pass."""
    if facts.get("unusable"):
        return "fail"
    measure = measures_of(facts)[0]
    difference = facts["intervals"][f"to_{_reference(facts)}"]["difference"]
    is_worse = difference["low"] > 0 if measure.lower_is_better else difference["high"] < 0
    return "warn" if is_worse else "pass"


def _does_it_work(facts: Result) -> str:
    measure, unusable = measures_of(facts)[0], facts.get("unusable", {})
    if "full_precision" in unusable:
        return (
            f"The network itself does not work on this data: full precision is unusable "
            f"({unusable['full_precision']}). What a chip does to it cannot be judged."
        )
    if "digital" in unusable:
        return (
            f"It does not work, and the chip is not the reason: the rounded weights are unusable without one "
            f"({unusable['digital']})."
        )
    values = facts["intervals"][measure.key]
    shown = {name: f"{measure.name} {_with_unit(measure, own['value'])}" for name, own in values.items()}
    if "mapped" in unusable:
        return (
            f"It does not work on this chip, which is unusable ({unusable['mapped']}); the same rounded weights, "
            f"computed digitally, have a {shown['digital']}."
        )
    reference = _reference(facts)
    own = facts["intervals"][f"to_{reference}"]
    against = f"{shown['mapped']} on the chip against {_with_unit(measure, values[reference]['value'])} "
    against += "in full precision" if reference == "full_precision" else "digitally, with the same rounded weights"
    if outcome(facts) == "warn":
        relative = own["relative"]
        much = "" if relative is None else f", {percent(abs(relative['value']), 0)} % {_worse(measure)}"
        return f"It works with a loss: {against}{much}."
    low, high = own["difference"]["low"], own["difference"]["high"]
    if low > 0 or high < 0:
        return f"It works, and better than its reference: {against}."
    return f"It works: {against}, which {items_of(facts)} cannot tell apart."


def _worse(measure: Measure) -> str:
    return "more errors" if measure.lower_is_better else "lower"


def _reference(facts: Result) -> str:
    """The system that a chip is judged by: full precision where it was measured, else the digital network."""
    return "full_precision" if "to_full_precision" in facts["intervals"] else "digital"


def _how_sure(facts: Result) -> str:
    measure, reference, intervals = measures_of(facts)[0], _reference(facts), facts["intervals"]
    relative = intervals[f"to_{reference}"]["relative"]
    sentences = []
    if relative is not None and not facts.get("unusable"):
        high = "unbounded" if relative["high"] is None else f"{percent(relative['high'], 1, signed=True)} %"
        sentences.append(
            f"Relative to {SYSTEMS[reference]}, {percent(relative['value'], 1, signed=True)} % "
            f"({interval_name(facts)}: {percent(relative['low'], 1, signed=True)} to {high})."
        )
        if relative["high"] is None or relative["high"] - relative["low"] > WIDE:
            sentences.append(f"{_sentence(items_of(facts))} are few: more of them narrow this interval.")
    spread = facts["mapped"][measure.key]["std"]
    chips = len(facts["mapped"]["trials"])
    if spread is None:
        sentences.append("One chip says nothing of the next one: --trials 5 measures the spread.")
    else:
        shown = f"{measure.show(spread)}{_unit(measure)}"
        sentences.append(f"From chip to chip (of {chips}), the {measure.name} varies by {shown} (std).")
    if reference == "digital":
        sentences.append("There is no full precision to compare with: --reference CHECKPOINT adds it.")
    if facts["data"].get("synthetic"):
        sentences.append(f"{SYNTHETIC}.")
    return " ".join(sentences)


def _what_hurts(facts: Result) -> str:
    if "full_precision" in facts.get("unusable", {}):
        return "The network itself, before any hardware."
    measure, intervals = measures_of(facts)[0], facts["intervals"]
    sentences = []
    if "to_full_precision" in intervals:
        full, digital, mapped = (
            intervals[measure.key][name]["value"] for name in ("full_precision", "digital", "mapped")
        )
        added = [measure.show(value, signed=True) + _unit(measure) for value in (digital - full, mapped - digital)]
        sentences.append(
            f"Rounding weights and inputs changes the {measure.name} by {added[0]}, the chip by {added[1]}."
        )
    if "ablation" in facts:
        sentences.append(_worst_step(facts["ablation"], measure))
    if "sensitivity" in facts:
        sentences.append(f"{_sentence(worst_layers(facts['sensitivity']))}.")
    elif "budget" in facts:
        sentences.append(budget_sentence(facts["budget"]))
    return " ".join(sentences) or "Not measured: --ablate and --sensitivity find out."


def _worst_step(steps: Sequence[Result], measure: Measure) -> str:
    """Say which non-ideality adds most to the measure."""
    sign = 1 if measure.lower_is_better else -1
    added = {
        effect_label(step["effect"]): sign * (step[measure.key]["mean"] - before[measure.key]["mean"])
        for before, step in pairwise(steps)
    }
    worst = max(added, key=lambda effect: added[effect], default=None)
    if worst is None or added[worst] <= 0:
        return f"No non-ideality alone makes the {measure.name} worse."
    return (
        f"Of the non-idealities, {worst} costs most: the {measure.name} changes by "
        f"{measure.show(sign * added[worst], signed=True)}{_unit(measure)}."
    )


def budget_sentence(budget: Result) -> str:
    """Say which non-ideality, and which layer, has most of the error of the products."""
    if not budget["effects"] or not budget["layers"]:
        return "The products are exact."
    effect = max(budget["effects"], key=lambda step: step["added"])
    layer = max(budget["layers"], key=lambda one: one["error"])
    return (
        f"Products of weights and inputs are {percent(budget['error'], 1)} % off, to which "
        f"{effect_label(effect['effect'])} adds most ({percent(effect['added'], 1)} %); the worst layer is "
        f"{layer['name']} ({percent(layer['error'], 1)} %)."
    )


def sweep_answer(points: Sequence[Result]) -> Answer:
    """Return the answer of a sweep: how many of its points work, which is best, and which key matters most."""
    measure = measures_of(points[0])[0]
    kinds = [outcome(point) for point in points]
    means = [point["mapped"][measure.key]["mean"] for point in points]
    place = (min if measure.lower_is_better else max)(range(len(points)), key=lambda number: means[number])
    reference = SYSTEMS[_reference(points[0])]
    counts = [
        f"{counted(kinds.count('pass'), 'point')} of {len(points)} {'does' if kinds.count('pass') == 1 else 'do'} as "
        f"well as {reference}, as far as {items_of(points[0])} can tell"
    ]
    if lose := kinds.count("warn"):
        counts.append(f"{lose} {'loses' if lose == 1 else 'lose'}")
    if ruined := kinds.count("fail"):
        counts.append(f"{ruined} {'is' if ruined == 1 else 'are'} unusable")
    best = f"The best is {_settings(points[place])}, with a {measure.name} of {_with_unit(measure, means[place])}."
    kind: Kind = "pass" if set(kinds) == {"pass"} else "fail" if set(kinds) == {"fail"} else "warn"
    details = [
        ("How sure, of the best", _how_sure(points[place])),
        ("What matters most", _what_matters(points, means, measure)),
    ]
    return Answer(kind, f"{'; '.join(counts)}. {best}", details)


def _what_matters(points: Sequence[Result], means: Sequence[float], measure: Measure) -> str:
    """Say which swept key changes the measure most, the others being equal."""
    said = []
    for key in points[0]["settings"]:
        by_others: dict[str, list[float]] = {}
        by_value: dict[str, list[float]] = {}
        for point, mean in zip(points, means, strict=True):
            others = str([value for name, value in point["settings"].items() if name != key])
            by_others.setdefault(others, []).append(mean)
            by_value.setdefault(value_text(key, point["settings"][key]), []).append(mean)
        change = fmean(max(values) - min(values) for values in by_others.values())
        mean_of = {value: fmean(values) for value, values in by_value.items()}
        low, high = (f(mean_of, key=lambda value: mean_of[value]) for f in (min, max))
        ends = f"{_with_unit(measure, mean_of[low])} at {low} to {_with_unit(measure, mean_of[high])} at {high}"
        said.append((change, f"{key}: {measure.name} from {ends}"))
    return "; ".join(text for _, text in sorted(said, key=lambda one: -one[0])) + "."


def mapping_answer(result: Result) -> Answer:
    """Return the answer of a mapping: what is on arrays, and how exact its products are."""
    layers = result["layers"]
    weights = sum(layer["out_features"] * layer["in_features"] // layer["groups"] for layer in layers)
    digital = sum(layer["weights"] for layer in result["digital"])
    arrays = sum(layer["tiles"] for layer in layers)
    said = (
        f"{counted(len(layers), 'layer')} with {percent(weights / (weights + digital), 1)} % of the weights of layers "
        f"{'is' if len(layers) == 1 else 'are'} on {counted(arrays, 'array')}."
    )
    details = [("How sure", "What this does to the results of the network is not measured here: `memsim eval` does.")]
    if "budget" in result:
        details.append(("What hurts most", budget_sentence(result["budget"])))
    if "chip" in result.get("cost", {}):
        details.append(("Energy", f"{_sentence(verdict_text(result['cost']['chip']))} (an estimate)."))
    return Answer("pass", said, details)


def _settings(point: Result) -> str:
    return ", ".join(f"{key}={value_text(key, value)}" for key, value in point["settings"].items())


def _unit(measure: Measure) -> str:
    return " %" if measure.in_percent else ""


def _with_unit(measure: Measure, value: float) -> str:
    return measure.show(value) + _unit(measure)


def _sentence(text: str) -> str:
    """Return `text` with a capital letter, unless it is a number."""
    return text[:1].upper() + text[1:]
