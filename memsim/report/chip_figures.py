"""Figures of whole chips: the floor plan, the prices that matter, and the Pareto front of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from memsim.evaluation.measure import Measure
from memsim.report.cells import UNITS, value_text
from memsim.report.chip_cells import unit_of
from memsim.report.drawing import (
    BAND,
    BLUE,
    GOLD,
    GREY,
    SMALL,
    Label,
    drawing,
    plain_log,
    series_colours,
)
from memsim.units import prefix_of

MOST_CHIPS = 6
"""The largest number of chips in a floor plan."""

TORNADO_PRICES = 10
"""The number of prices in a figure."""

_DECADE = 3.0
"""The ratio of energies from which their axis is logarithmic."""


def floor_plan(chip: Mapping[str, Any]) -> bytes:
    """Draw the cores of each chip, coloured by the place in the network of the layers on them."""
    own, cores = chip["placement"], chip["spec"]["cores"]
    layers = own["layers"]
    on_core: dict[int, list[int]] = {}
    for number, layer in enumerate(layers):
        for core in layer["cores"]:
            on_core.setdefault(core, []).append(number)
    side = math.ceil(math.sqrt(cores))
    lines = math.ceil(cores / side)
    shown = min(own["chips"], MOST_CHIPS)
    colours = colormaps["viridis"]
    with drawing(0.8 + 2.6 * lines / side, 2.8 * shown + 1.2) as panel:
        for core in range(shown * cores):
            index, place = divmod(core, cores)
            x, y = index * (side + 1) + place % side, lines - 1 - place // side
            held = on_core.get(core, [])
            for strip, number in enumerate(held):
                colour = colours(number / max(1, len(layers) - 1))
                panel.axes.add_patch(Rectangle((x + strip / len(held), y), 1 / len(held), 1, color=colour, linewidth=0))
            panel.axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=GREY, linewidth=0.4))
        panel.axes.set_xlim(-0.2, shown * (side + 1) - 0.8)
        panel.axes.set_ylim(-0.2, lines + 0.2)
        panel.axes.set_aspect("equal")
        panel.axes.set_xticks([])
        panel.axes.set_yticks([])
        panel.axes.grid(visible=False)
        more = f", the first {shown} of {own['chips']}" if shown < own["chips"] else ""
        panel.axes.set_title(f"cores of the chips{more}: dark, first layers; bright, last layers", fontsize=9)
    return panel.svg


def tornado(chip: Mapping[str, Any]) -> bytes:
    """Draw the energy with one price at the ends of its range, for the prices that matter most."""
    prices = chip["tornado"][:TORNADO_PRICES]
    nominal = chip["joules"]["nominal"]
    with drawing(1.2 + 0.3 * len(prices), 6.4) as panel:
        places = range(len(prices) - 1, -1, -1)
        for end, colour in (("low", BLUE), ("high", GOLD)):
            widths = [price[end] / nominal - 1 for price in prices]
            panel.axes.barh(places, widths, left=1, color=colour, label=f"{end} price")
        panel.axes.axvline(1, color=GREY, linewidth=0.8)
        panel.axes.set_yticks(places, [price["price"] for price in prices], fontsize=SMALL)
        panel.axes.set(xlabel="energy, relative to that at nominal prices")
        panel.axes.grid(axis="y", visible=False)
        panel.legend()
    return panel.svg


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the points (x, y) that no other one beats in both, by their numbers, from small to large x."""
    found: list[int] = []
    for number in sorted(range(len(points)), key=lambda n: points[n]):
        if not found or points[number][1] < points[found[-1]][1]:
            found.append(number)
    return found


def draw_front(axes: Axes, points: Sequence[Mapping[str, Any]], measure: Measure) -> list[Label]:
    """Draw the measure of every point of a sweep against the energy of the whole chip.

    The line joins the points that no other one beats in both, which are filled and named in full; the others have the
    colour of the first key's value, and the names of the other values where there is room. Returns the names, for
    `label_points` once the figure is laid out.
    """
    factor = 100 if measure.in_percent else 1
    joules = [point["cost"]["chip"]["joules"]["nominal"] for point in points]
    digital = points[0]["cost"]["chip"]["digital"][0]
    unit, size = prefix_of(max(joules))
    x = [value / size for value in joules]
    y = [factor * point["mapped"][measure.key]["mean"] for point in points]
    settings = [[value_text(*one) for one in point["settings"].items()] for point in points]
    firsts = list(dict.fromkeys(own[0] for own in settings))
    palette = dict(zip(firsts, series_colours(len(firsts)), strict=True)) if len(settings[0]) > 1 else {}
    colours = [palette.get(own[0], BLUE) for own in settings]
    better = front([(a, b if measure.lower_is_better else -b) for a, b in zip(x, y, strict=True)])
    axes.step([x[n] for n in better], [y[n] for n in better], where="post", color=BAND, zorder=1)
    for number, colour in enumerate(colours):
        filled = colour if number in better else "white"
        axes.plot(x[number], y[number], "o", color=colour, markerfacecolor=filled)
    other = digital["joules"]["nominal"] / size
    axes.axvline(other, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
    axes.annotate(
        f"int{digital['bits']} digital", (other, 0.02), (3, 0), xycoords=("data", "axes fraction"),
        textcoords="offset points", rotation=90, fontsize=SMALL, color=GREY,
    )  # fmt: skip
    if max(*x, other) > _DECADE * min(*x, other):
        axes.set_xscale("log")
        plain_log(axes.xaxis)
    axes.margins(x=0.15)
    axes.set_xlabel(f"{unit}J for {UNITS[unit_of(points[0]['cost']['chip'])]}, whole chip")
    named = []
    for number in sorted(range(len(points)), key=lambda number: number not in better):
        own = settings[number] if number in better or not palette else settings[number][1:]
        named.append(Label(x[number], y[number], " / ".join(own), colours[number]))
    return named


def range_of_prices(points: Sequence[Mapping[str, Any]]) -> str:
    """Say how far all prices at their low, or high, ends move the energies of a sweep."""
    energies = [point["cost"]["chip"]["joules"] for point in points]
    low, high = (sorted(energy[end] / energy["nominal"] for energy in energies) for end in ("low", "high"))
    return f"all prices low or high: times {low[0]:.2f} to {high[-1]:.1f}"
