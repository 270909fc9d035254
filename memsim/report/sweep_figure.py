"""Sweeps as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memsim.config.changes import setting_text
from memsim.errors import InputError
from memsim.report.cells import items_of, measures_of
from memsim.report.chip_figures import draw_front
from memsim.report.drawing import error_bars, svg_of
from memsim.storage.files import writing
from memsim.units import counted

Line = Mapping[str, Any]

MOST_IN_LEGEND = 12
"""The largest number of lines in a legend; with more lines, the colours show the order of the values."""


def wer_by_setting(points: Sequence[Line], path: Path, title: str | None = None) -> None:
    """Draw the measure of a sweep (of speech: WER) against each swept key, a line for each choice of the others.

    Markers are means over chips, bars reach from the best to the worst chip, dashes are the quantised digital model
    (where it differs from line to line) and the dotted line is full precision. Points with a cost have one more panel:
    the measure against the energy of the whole chip. Writes SVG, the same bytes for the same
    points; for another format, see `sweep_figure`.

    Args:
        points: the `point` lines of a results file, or the `points` of `memsim eval --json`.
        path: the SVG file to write.
        title: the title; None makes one from the points.

    Raises InputError when nothing was swept.
    """
    drawn = svg_of(sweep_figure(points, title))
    with writing(path) as temporary:
        temporary.write_bytes(drawn)


def sweep_figure(points: Sequence[Line], title: str | None = None) -> Any:
    """`wer_by_setting` as a matplotlib Figure."""
    keys = list(points[0]["settings"]) if points else []
    if not keys:
        raise InputError("nothing was swept: a figure needs points with --set KEY=V1,V2,... or --mapping NAME,NAME,...")
    with_cost = all("chip" in point.get("cost", {}) for point in points)
    count = len(keys) + with_cost
    figure = Figure(figsize=(1.5 + 4.3 * count, 4.0), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    for axes, key in zip(panels, keys, strict=False):
        _panel(axes, points, key)
    measure = measures_of(points[0])[0]
    if with_cost:
        draw_front(panels[-1], points, measure)
    panels[0].set_ylabel(f"{measure.name} (%)" if measure.in_percent else measure.name)
    panels[0].set_ylim(bottom=0)
    figure.suptitle(_title(points) if title is None else title, fontsize="medium")
    return figure


def _title(points: Sequence[Line]) -> str:
    first = points[0]
    data, chips = first["data"], len(first["mapped"]["trials"])
    name = " ".join([Path(data["name"]).stem, *([data["split"]] if data.get("split", "all") != "all" else [])])
    amount = counted(data["words"], "word") if "words" in data else items_of(first)
    return f"{name}, {amount}, {counted(chips, 'chip')} per point"


def _panel(axes: Axes, points: Sequence[Line], key: str) -> None:
    """The WER against `key`, a line for each choice of the other keys."""
    measure = measures_of(points[0])[0]
    factor = 100 if measure.in_percent else 1
    values = list(dict.fromkeys(setting_text(point["settings"][key]) for point in points))
    lines: dict[str, list[Line]] = {}
    for point in points:
        others = [f"{name}={setting_text(value)}" for name, value in point["settings"].items() if name != key]
        lines.setdefault(", ".join(others), []).append(point)
    ticks = _places(values)
    colours = colormaps["viridis"]
    for number, (label, line) in enumerate(lines.items()):
        colour = colours(0.9 * number / max(len(lines) - 1, 1))
        line = sorted(line, key=lambda point: ticks[setting_text(point["settings"][key])])
        places = [ticks[setting_text(point["settings"][key])] for point in line]
        over_chips = [point["mapped"][measure.key] for point in line]
        mean, low, high = ([factor * values[name] for values in over_chips] for name in ("mean", "min", "max"))
        bars = error_bars(mean, low, high)
        shown = len(lines) <= MOST_IN_LEGEND
        name = f"mapped, {label}" if label else "mapped"
        axes.errorbar(
            places, mean, bars, marker="o", markersize=4, capsize=3, color=colour, label=name if shown else None
        )
        digital = [factor * point["digital"][measure.key] for point in line]
        axes.plot(places, digital, linestyle="--", linewidth=1, color=colour, alpha=0.6)
    axes.plot([], [], linestyle="--", linewidth=1, color="grey", label="digital, quantised")
    full_precision = next((factor * p["full_precision"][measure.key] for p in points if "full_precision" in p), None)
    if full_precision is not None:
        axes.axhline(full_precision, linestyle=":", color="black", label="full precision")
    axes.set_xlabel(key)
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _places(values: Sequence[str]) -> dict[str, float]:
    """The places of a key's values on its axis: numbers at their own, words one after the other."""
    try:
        return {value: float(value) for value in values}
    except ValueError:
        return {value: float(number) for number, value in enumerate(values)}
