"""Figures of results as SVG, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memsim.evaluation.measure import Measure
from memsim.hardware import effect_label
from memsim.report.drawing import BLUE, GREY, SMALL, Label, drawing, error_bars, label_ends, series_colours

SYSTEMS = {"full_precision": "full precision", "digital": "digital, quantised", "mapped": "mapped"}
"""Names of the compared systems."""

FIGURE_LAYERS = 15
"""The most layers in a figure; tables have them all."""


def scores(facts: Mapping[str, Any], measure: Measure) -> bytes:
    """Draw the measure of every system of a result of `memsim eval`, with its interval, and of every chip."""
    intervals, trials = facts["intervals"], facts["mapped"]["trials"]
    names = [name for name in ("full_precision", "digital", "mapped") if name in intervals[measure.key]]
    factor, unit = (100, " (%)") if measure.in_percent else (1, "")
    items = intervals.get("over", "utterances").partition(",")[0]
    with drawing(1.3 + 0.45 * len(names), 6.4) as panel:
        for place, name in enumerate(reversed(names)):
            value, low, high = (factor * intervals[measure.key][name][key] for key in ("value", "low", "high"))
            colour = BLUE if name == "mapped" else GREY
            panel.axes.errorbar(value, place, xerr=error_bars([value], [low], [high]), fmt="o", color=colour)
        chips = [factor * trial[measure.key] for trial in trials]
        panel.axes.plot(chips, [-0.3] * len(chips), "|", color=BLUE, markersize=9, alpha=0.7, label="each chip")
        panel.axes.set_yticks(range(len(names)), [SYSTEMS[name] for name in reversed(names)])
        panel.axes.set_ylim(-0.7, len(names) - 0.4)
        panel.axes.set_xlim(left=0)
        panel.axes.set(xlabel=f"{measure.name}{unit}, {intervals['confidence']:.0%} intervals over {items}")
        panel.legend()
    return panel.svg


def effects(budget: Mapping[str, Any]) -> bytes:
    """Draw the error of the products that each non-ideality adds, as root mean square over layers."""
    steps = budget["effects"]
    with drawing(1.2 + 0.3 * len(steps), 6.4) as panel:
        places = range(len(steps) - 1, -1, -1)
        panel.axes.barh(places, [100 * step["added"] for step in steps], color=BLUE)
        panel.axes.set_yticks(places, [effect_label(step["effect"]) for step in steps])
        panel.axes.axvline(0, color=GREY, linewidth=0.8)
        panel.axes.set(xlabel="adds to the error of the products (%)", title="non-idealities")
    return panel.svg


def ablation(steps: Sequence[Mapping[str, Any]], full_precision: float | None, measure: Measure) -> bytes:
    """Draw the measure with the non-idealities switched on one by one; bars reach from the best to the worst chip."""
    with drawing(3.2, 6.4) as panel:
        over_chips, factor = [step[measure.key] for step in steps], 100 if measure.in_percent else 1
        mean, low, high = ([factor * values[key] for values in over_chips] for key in ("mean", "min", "max"))
        bars = error_bars(mean, low, high)
        places = range(len(steps))
        panel.axes.errorbar(places, mean, bars, marker="o", color=BLUE)
        if full_precision is not None:
            panel.axes.axhline(factor * full_precision, linestyle=":", color="black")
        names = [effect_label(step["effect"]) for step in steps]
        panel.axes.set_xticks(places, names, rotation=30, ha="right")
        panel.axes.set(ylabel=f"{measure.name}{' (%)' if measure.in_percent else ''}", xlabel="non-idealities up to")
        panel.axes.set_ylim(bottom=0)
        if full_precision is not None:
            label_ends(panel.axes, [Label(len(steps) - 1, factor * full_precision, "full precision", "black")])
    return panel.svg


def layer_bars(
    rows: Sequence[tuple[str, Mapping[str, float]]], xlabel: str, title: str, *, stacked: bool = False
) -> bytes:
    """Draw bars of the first FIGURE_LAYERS rows, each a layer with its values by name, side by side or stacked."""
    rows = rows[:FIGURE_LAYERS]
    names = list(rows[0][1]) if rows else []
    with drawing(1.3 + 0.26 * len(rows), 6.4) as panel:
        left = [0.0] * len(rows)
        colours = series_colours(len(names))
        height = 0.8 if stacked else 0.8 / max(len(names), 1)
        for number, name in enumerate(names):
            values = [values[name] for _, values in rows]
            shift = 0.0 if stacked else height * ((len(names) - 1) / 2 - number)
            places = [len(rows) - 1 - place + shift for place in range(len(rows))]
            panel.axes.barh(places, values, height, left if stacked else None, color=colours[number], label=name)
            left = [a + b for a, b in zip(left, values, strict=True)]
        panel.axes.set_yticks(range(len(rows) - 1, -1, -1), [name for name, _ in rows], fontsize=SMALL)
        panel.axes.set(xlabel=xlabel, title=title)
        panel.axes.grid(axis="y", visible=False)
        if len(names) > 1:
            panel.legend()
    return panel.svg
