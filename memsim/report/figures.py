"""Figures of results, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from memsim.config.changes import Changes, title, without
from memsim.evaluation.task import Measure
from memsim.report.drawing import BAND, BLUE, GREY, RED, drawing, svg_of
from memsim.spec import effect_label
from memsim.storage.files import writing

SYSTEMS = {"full_precision": "full precision", "digital": "digital, quantised", "mapped": "mapped"}
"""What is compared, as people write it."""

FIGURE_LAYERS = 15
"""So many layers are drawn; tables have them all."""

_COLOURS = (BLUE, BAND, RED, GREY)


@dataclass(frozen=True)
class Line:
    """WERs by weight bits: several of each, such as one a chip. A dashed line has no markers."""

    label: str
    wers: Mapping[int, Sequence[float]]
    colour: int  # of matplotlib's cycle
    dashed: bool = False


def wer_by_bits(results: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw WER against weight bits, a line for each hardware, from results as `memsim eval --json` writes them.

    Dashes are the quantised digital model and the dotted line is full precision.
    """
    lines = []
    titles = [title_without_bits(result["hardware"]) for result in results]
    for colour, name in enumerate(dict.fromkeys(titles)):
        own = [result for result, each in zip(results, titles, strict=True) if each == name]
        rows = {int(row["hardware"]["spec"]["weights"]["bits"]): row for row in own}
        mapped = {bits: [trial["wer"] for trial in row["mapped"]["trials"]] for bits, row in rows.items()}
        digital = {bits: [row["digital"]["wer"]] for bits, row in rows.items()}
        lines.append(Line(f"mapped on {name}", mapped, colour))
        lines.append(Line(f"digital, as {name} quantises", digital, colour, dashed=True))
    full_precision = next((r["full_precision"]["wer"] for r in results if "full_precision" in r), None)
    draw_by_bits(lines, {} if full_precision is None else {"full precision": full_precision}, path, title)


def title_without_bits(hardware: Mapping[str, Any]) -> str:
    """Its name and the keys that were changed, but for the bits."""
    changes = Changes(hardware.get("base"), hardware.get("changed", {}))
    return title(hardware["name"], without(changes, "weights.bits"))


def draw_by_bits(
    lines: Sequence[Line], levels: Mapping[str, float], path: Path, title: str, *, top: float | None = None
) -> None:
    """Draw `lines`, and `levels` (WERs by what they are called) as dotted horizontal lines, up to a WER of `top`.

    Markers are means, bars reach from the least to the largest. Writes SVG, the same bytes for the same values.
    """
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            bits = sorted(line.wers)
            percents = [[100 * wer for wer in line.wers[b]] for b in bits]
            mean, low, high = ([f(values) for values in percents] for f in (fmean, min, max))
            colour = f"C{line.colour}"
            if line.dashed:
                axes.plot(bits, mean, linestyle="--", color=colour, alpha=0.6, label=line.label)
            else:
                bars = _bars(mean, low, high)
                axes.errorbar(bits, mean, bars, marker="o", capsize=4, color=colour, label=line.label)
        for index, (label, wer) in enumerate(levels.items()):
            axes.axhline(100 * wer, linestyle=":", color=f"{0.5 * index}", label=label)
        axes.set(xlabel="weight bits", ylabel="WER (%)", title=title)
        axes.set_xticks(sorted({bits for line in lines for bits in line.wers}))
        axes.set_ylim(0, None if top is None else 100 * top)
        axes.invert_xaxis()
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        svg = svg_of(figure)
    with writing(path) as temporary:
        temporary.write_bytes(svg)


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
            panel.axes.errorbar(value, place, xerr=_bars([value], [low], [high]), fmt="o", color=colour, capsize=4)
        chips = [factor * trial[measure.key] for trial in trials]
        panel.axes.plot(chips, [-0.3] * len(chips), "|", color=BLUE, markersize=9, alpha=0.7, label="each chip")
        panel.axes.set_yticks(range(len(names)), [SYSTEMS[name] for name in reversed(names)])
        panel.axes.set_ylim(-0.7, len(names) - 0.4)
        panel.axes.set_xlim(left=0)
        panel.axes.set(xlabel=f"{measure.name}{unit}, {intervals['confidence']:.0%} intervals over {items}")
        panel.axes.legend(loc="lower left")
    return panel.svg


def effects(budget: Mapping[str, Any]) -> bytes:
    """What each effect adds to the error of the products, root mean square over layers."""
    steps = budget["effects"]
    with drawing(1.2 + 0.3 * len(steps), 6.4) as panel:
        places = range(len(steps) - 1, -1, -1)
        panel.axes.barh(places, [100 * step["added"] for step in steps], color=BLUE)
        panel.axes.set_yticks(places, [effect_label(step["effect"]) for step in steps])
        panel.axes.axvline(0, color=GREY, linewidth=0.8)
        panel.axes.set(xlabel="adds to the error of the products (%)", title="effects")
    return panel.svg


def ablation(steps: Sequence[Mapping[str, Any]], full_precision: float | None, measure: Measure) -> bytes:
    """The measure with the effects switched on one after the other; bars reach from the best to the worst chip."""
    with drawing(3.2, 6.4) as panel:
        over_chips, factor = [step[measure.key] for step in steps], 100 if measure.in_percent else 1
        mean, low, high = ([factor * values[key] for values in over_chips] for key in ("mean", "min", "max"))
        bars = _bars(mean, low, high)
        places = range(len(steps))
        panel.axes.errorbar(places, mean, bars, marker="o", capsize=4, color=BLUE)
        if full_precision is not None:
            panel.axes.axhline(factor * full_precision, linestyle=":", color="black", label="full precision")
            panel.axes.legend()
        names = [effect_label(step["effect"]) for step in steps]
        panel.axes.set_xticks(places, names, rotation=30, ha="right")
        panel.axes.set(ylabel=f"{measure.name}{' (%)' if measure.in_percent else ''}", title="with effects up to")
        panel.axes.set_ylim(bottom=0)
    return panel.svg


def layer_bars(
    rows: Sequence[tuple[str, Mapping[str, float]]], xlabel: str, title: str, *, stacked: bool = False
) -> bytes:
    """Bars of the first FIGURE_LAYERS rows, each a layer with its values by name; one on the other, or in turn."""
    rows = rows[:FIGURE_LAYERS]
    names = list(rows[0][1]) if rows else []
    with drawing(1.3 + 0.26 * len(rows), 6.4) as panel:
        left = [0.0] * len(rows)
        height = 0.8 if stacked else 0.8 / max(len(names), 1)
        for number, name in enumerate(names):
            values = [values[name] for _, values in rows]
            shift = 0.0 if stacked else height * ((len(names) - 1) / 2 - number)
            places = [len(rows) - 1 - place + shift for place in range(len(rows))]
            panel.axes.barh(places, values, height, left if stacked else None, color=_COLOURS[number], label=name)
            left = [a + b for a, b in zip(left, values, strict=True)]
        panel.axes.set_yticks(range(len(rows) - 1, -1, -1), [name for name, _ in rows], fontsize=8)
        panel.axes.set(xlabel=xlabel, title=title)
        panel.axes.grid(axis="y", visible=False)
        if len(names) > 1:
            panel.axes.legend(loc="lower right")
    return panel.svg


def _bars(middle: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """What matplotlib wants of bars from `low` to `high`; a mean of equal values may be rounded beyond them."""
    below = [max(m - x, 0.0) for m, x in zip(middle, low, strict=True)]
    return [below, [max(x - m, 0.0) for m, x in zip(middle, high, strict=True)]]
