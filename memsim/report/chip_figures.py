"""Figures of whole chips: the floor plan, the prices that matter, and the Pareto front of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from memsim.config.changes import setting_text
from memsim.evaluation.measure import Measure
from memsim.report.drawing import BAND, BLUE, GREY, RED, drawing

MOST_CHIPS = 6
"""The largest number of chips in a floor plan."""

TORNADO_PRICES = 10
"""The number of prices in a figure."""


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
        for place, price in enumerate(reversed(prices)):
            low, high = price["low"] / nominal, price["high"] / nominal
            panel.axes.barh(place, low - 1, left=1, color=BLUE)
            panel.axes.barh(place, high - 1, left=1, color=RED)
        panel.axes.axvline(1, color=GREY, linewidth=0.8)
        panel.axes.set_yticks(range(len(prices)), [price["price"] for price in reversed(prices)], fontsize=8)
        panel.axes.set(xlabel="energy, relative to that at nominal prices", title="low (blue) and high (red) prices")
        panel.axes.grid(axis="y", visible=False)
    return panel.svg


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the points (x, y) that no other one beats in both, by their numbers, from small to large x."""
    found: list[int] = []
    for number in sorted(range(len(points)), key=lambda n: points[n]):
        if not found or points[number][1] < points[found[-1]][1]:
            found.append(number)
    return found


def draw_front(axes: Axes, points: Sequence[Mapping[str, Any]], measure: Measure) -> None:
    """Draw the measure of every point of a sweep against joules for a second of audio on the whole chip.

    Bars reach over the range of prices; the line joins the points that no other one beats in both.
    """
    factor = 100 if measure.in_percent else 1
    chips = [point["cost"]["chip"] for point in points]
    values = [factor * point["mapped"][measure.key]["mean"] for point in points]
    for chip, value, point in zip(chips, values, points, strict=True):
        energy = chip["joules"]
        axes.plot([energy["low"], energy["high"]], [value, value], color=BAND, linewidth=1, zorder=1)
        axes.plot(energy["nominal"], value, "o", color=BLUE, markersize=4)
        label = ", ".join(setting_text(setting) for setting in point["settings"].values())
        axes.annotate(label, (energy["nominal"], value), (4, 4), textcoords="offset points", fontsize=7)
    nominal = [chip["joules"]["nominal"] for chip in chips]
    better = front(list(zip(nominal, values, strict=True)))
    axes.plot([nominal[n] for n in better], [values[n] for n in better], color=RED, linewidth=1, label="best")
    digital = chips[0]["digital"][0]
    axes.axvline(digital["joules"]["nominal"], color=GREY, linestyle=":", label=f"int{digital['bits']} digital")
    axes.set_xscale("log")
    axes.set_xlabel("J for a second of audio, whole chip")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
