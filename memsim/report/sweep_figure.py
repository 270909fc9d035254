"""Sweeps as figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memsim.config.changes import setting_text
from memsim.errors import InputError
from memsim.report.cells import items_of, measures_of, value_text
from memsim.report.chip_figures import draw_front, range_of_prices
from memsim.report.drawing import (
    GREY,
    MARKERS,
    SMALL,
    Label,
    arrow_up,
    caption,
    dodged,
    error_bars,
    headline,
    label_ends,
    label_points,
    series_colours,
    style,
    svg_of,
    top_of,
)
from memsim.report.sections import hardware_title
from memsim.storage.checkpoint import shown_name
from memsim.storage.files import writing
from memsim.units import counted

Line = Mapping[str, Any]

MOST_ACROSS = 2
"""The most panels side by side."""

MOST_LABELLED = 8
"""The largest number of lines that are all named; of more, the first and the last are, and colours show the order."""

MOST_CATEGORIES = 8
"""The largest number of values that stand side by side; more numbers stand at their own places on the axis."""

_DECADES = 100.0
"""The ratio of the largest to the smallest number from which an axis is logarithmic."""


def wer_by_setting(points: Sequence[Line], path: Path, title: str | None = None) -> None:
    """Draw the measure of a sweep (of speech: WER) against each swept key, a line for each choice of the others.

    Markers are means over chips, bars reach from the best to the worst chip, dashes are the quantised digital model
    and the dotted line is full precision. A point that is far worse than the others is an arrow with its value, so that
    the others keep their scale. Points with a cost have one more panel: the measure against the energy of the whole
    chip. Writes SVG, the same bytes for the same points; for another format, see `sweep_figure`.

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
    measure = measures_of(points[0])[0]
    factor = 100 if measure.in_percent else 1
    with style():
        longest = max(len(" / ".join(value_text(*one) for one in point["settings"].items())) for point in points)
        width = 4.3 if len(keys) < 3 else 3.2 + 0.08 * longest
        across, down = min(count, MOST_ACROSS), math.ceil(count / MOST_ACROSS)
        figure = Figure(figsize=(1.5 + width * across, 0.4 + 3.6 * down), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        panels = grid.flat[:count]
        for unused in grid.flat[count:]:
            unused.set_visible(False)
        headline(figure, _title(points) if title is None else title)
        caption(figure, _caption(points, with_cost))
        for axes in grid[:, 0]:
            axes.set_ylabel(f"{measure.name} (%)" if measure.in_percent else measure.name)
        values = [value for p in points for value in (p["digital"][measure.key], p["mapped"][measure.key]["mean"])]
        top = top_of([factor * value for value in values]) if measure.lower_is_better else math.inf
        ends = [_panel(axes, points, key, top) for axes, key in zip(panels, keys, strict=False)]
        named = draw_front(panels[-1], points, measure) if with_cost else []
        panels[0].set_ylim(0, None if math.isinf(top) else top)
        for axes, own in zip(panels, ends, strict=False):
            label_ends(axes, own)
        label_points(panels[-1], named)
    return figure


def _title(points: Sequence[Line]) -> str:
    """The network, the chip without the swept keys, and the data."""
    first = points[0]
    data = first["data"]
    name = " ".join([Path(data["name"]).stem, *([data["split"]] if data.get("split", "all") != "all" else [])])
    amount = counted(data["words"], "word") if "words" in data else items_of(first)
    network = shown_name(Path(first["checkpoint"]["path"])).removesuffix(".safetensors")
    return f"{network} on {hardware_title(first['hardware'], *first['settings'])}; {name}, {amount}"


def _caption(points: Sequence[Line], with_cost: bool) -> str:
    """Return the line that says what the marks mean."""
    chips = max(len(point["mapped"]["trials"]) for point in points)
    said = ["points: one chip"]
    if chips > 1:
        said = [f"points: mean of {counted(chips, 'chip')}; bars: from the best to the worst chip"]
    said.append("dashes: the same rounded weights, digital")
    if any("full_precision" in point for point in points):
        said.append("dotted: full precision")
    if len(points[0]["settings"]) > 2:
        said.append(f"names: {' / '.join(points[0]['settings'])}, without that of the axis")
    if with_cost:
        said.append(f"energy at nominal prices; {range_of_prices(points)}; line: no other point beats it in both")
    return "; ".join(said)


def _panel(axes: Axes, points: Sequence[Line], key: str, top: float) -> list[Label]:
    """Draw the measure against `key`, a line for each choice of the other keys; return the names of the lines."""
    measure = measures_of(points[0])[0]
    factor = 100 if measure.in_percent else 1
    lines: dict[str, list[Line]] = {}
    for point in points:
        others = {name: value_text(name, value) for name, value in point["settings"].items() if name != key}
        texts = [f"{name}={text}" for name, text in others.items()] if len(others) == 1 else others.values()
        lines.setdefault(" / ".join(texts), []).append(point)
    places = _axis(axes, key, [point["settings"][key] for point in points])
    aside = dodged(len(lines)) if places.in_categories else [0.0] * len(lines)
    ends, digitals = [], {}
    for number, (label, line) in enumerate(lines.items()):
        colour = series_colours(len(lines))[number]
        line = sorted(line, key=lambda point: places.of[setting_text(point["settings"][key])])
        bare = [places.of[setting_text(point["settings"][key])] for point in line]
        over_chips = [point["mapped"][measure.key] for point in line]
        mean, low, high = (
            [min(factor * values[name], top) for values in over_chips] for name in ("mean", "min", "max")
        )
        x = [place + aside[number] for place in bare]
        shape = MARKERS[number % len(MARKERS)]
        axes.errorbar(x, mean, error_bars(mean, low, high), marker=shape, color=colour, label=label or "mapped")
        for place, values in zip(x, over_chips, strict=True):
            if factor * values["mean"] > top:
                arrow_up(axes, place, top, measure.show(values["mean"], 1), colour)
        digital = tuple(min(factor * point["digital"][measure.key], top) for point in line)
        digitals[tuple(bare), digital] = GREY if (tuple(bare), digital) in digitals else colour
        if len(lines) <= MOST_LABELLED or number in (0, len(lines) - 1):
            ends.append(Label(x[-1], mean[-1], label or "mapped", colour))
    for (own, values), colour in digitals.items():
        one = colour if len(digitals) > 1 else GREY
        axes.plot(own, values, linestyle="--", linewidth=1, color=one, alpha=0.7, zorder=1)
    if len(digitals) == 1:
        ends.append(Label(bare[-1], digital[-1], "digital", GREY))
    full_precision = next((factor * p["full_precision"][measure.key] for p in points if "full_precision" in p), None)
    if full_precision is not None:
        axes.axhline(full_precision, linestyle=":", linewidth=1.2, color="black", zorder=1)
    return ends


class _Places:
    """The places of a key's values on its axis, by the text of the value."""

    def __init__(self, of: Mapping[str, float], in_categories: bool) -> None:
        self.of, self.in_categories = of, in_categories


def _axis(axes: Axes, key: str, values: Sequence[object]) -> _Places:
    """Set up the axis of a key: a few values side by side, in order; many numbers on a linear or logarithmic axis."""
    axes.set_xlabel(key)
    value_of = {setting_text(value): value for value in values}
    try:
        numbers = {text: float(text) for text in value_of}
    except ValueError:
        numbers = {}
    if len(numbers) > MOST_CATEGORIES:
        least, most = min(numbers.values()), max(numbers.values())
        if least > 0 and most / least >= _DECADES:
            axes.set_xscale("log")
        return _Places(numbers, in_categories=False)
    ordered = sorted(numbers, key=lambda text: numbers[text]) or list(value_of)
    shown = [value_text(key, value_of[text]) for text in ordered]
    is_long = sum(len(text) + 2 for text in shown) > 44
    turned: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
    axes.set_xticks(range(len(ordered)), shown, fontsize=SMALL if is_long else None, **turned)
    axes.set_xlim(-0.4, len(ordered) - 0.6)
    return _Places({text: float(place) for place, text in enumerate(ordered)}, in_categories=True)
