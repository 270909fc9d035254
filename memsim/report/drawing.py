"""The style of all figures: colours, error bars, places of points, labels that keep clear of each other, and SVG.

The colours are Paul Tol's high-contrast scheme (dark blue, rose, gold), made for colour-blind readers and grey
printers; for more series than it has, matplotlib's viridis, whose lightness rises evenly.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from textwrap import fill
from typing import Any, NamedTuple, cast

import matplotlib as mpl
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

BLUE, RED, GOLD = "#004488", "#bb5566", "#ddaa33"
GREY, BAND = "#444444", "#bbbbbb"

MARKERS = "osD^vP"
"""The shapes of points of the first series, the second, and so on, which tell them apart without colours."""

SMALL = 8
"""The size in points of captions, of labels in figures, and of many names along an axis."""

BEHIND: Any = {"facecolor": "white", "linewidth": 0, "pad": 0.5}
"""The background of a text that a line may cross."""

RUINED = 4.0
"""A value of so many times the median is far from the others."""

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "errorbar.capsize": 3,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
}

_LEAST_CONTRAST = 4.5

_LETTER = 0.6
"""The width of a letter of the font, in its size."""


class Drawing:
    """A figure of one panel: `axes` to draw on, and `svg` once `drawing` has ended."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.axes: Axes = self.figure.add_subplot()
        self.svg = b""

    def legend(self) -> None:
        """Name the series above the panel, where nothing is drawn."""
        handles, names = self.axes.get_legend_handles_labels()
        self.figure.legend(handles, names, loc="outside upper left", ncols=len(names))


@contextmanager
def drawing(height: float = 2.9, width: float = 4.2) -> Iterator[Drawing]:
    """Open a block that draws a figure of one panel, `height` x `width` inches.

    The SVG has the same bytes for the same drawing.
    """
    with style():
        made = Drawing(width, height)
        yield made
        made.svg = svg_of(made.figure)


@contextmanager
def style() -> Iterator[None]:
    """Open a block in which matplotlib draws in the style of memsim's figures."""
    with mpl.rc_context(_STYLE):
        yield


def svg_of(figure: Figure) -> bytes:
    """Return a figure as SVG, the same bytes for the same figure."""
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "memsim", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def series_colours(count: int) -> list[str]:
    """Return a colour for each of `count` series; of more than three, from dark to bright."""
    if count <= 3:
        return [BLUE, RED, GOLD][:count]
    return [colors.to_hex(mpl.colormaps["viridis"](0.85 * number / (count - 1))) for number in range(count)]


def contrast(colour: str) -> float:
    """Return the contrast of a colour with white, 1 to 21 (WCAG 2.2)."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colors.to_rgb(colour)]
    luminance = sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return 1.05 / (luminance + 0.05)


def ink(colour: str) -> str:
    """Return `colour`, darkened until text in it is readable on white."""
    red, green, blue = colors.to_rgb(colour)
    shades = (
        colors.to_hex((share * red, share * green, share * blue)) for share in (1 - dark / 20 for dark in range(20))
    )
    return next(shade for shade in shades if contrast(shade) >= _LEAST_CONTRAST)


def error_bars(middle: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """Return the lengths of bars from `low` to `high` for matplotlib.

    The mean of equal values may be rounded beyond them, so lengths are at least 0.
    """
    below = [max(m - x, 0.0) for m, x in zip(middle, low, strict=True)]
    return [below, [max(x - m, 0.0) for m, x in zip(middle, high, strict=True)]]


def dodged(count: int, width: float = 0.36) -> list[float]:
    """Return the shifts of `count` series at the same place of an axis, so that their points lie side by side."""
    return [width * (number / (count - 1) - 0.5) if count > 1 else 0.0 for number in range(count)]


def top_of(values: Sequence[float]) -> float:
    """Return where an axis ends that a few ruined values would flatten; infinity where all of them fit.

    Ruined values are more than RUINED times the median.
    """
    ordinary = [value for value in values if value <= RUINED * median(values)]
    return 1.3 * max(ordinary) if len(ordinary) < len(values) and max(ordinary) > 0 else math.inf


def arrow_up(axes: Axes, x: float, top: float, value: str, colour: str) -> None:
    """Draw an arrow at the upper edge `top` of the panel for a point beyond it, with its value beside it."""
    axes.plot([x], [top], marker="^", color=colour, markersize=7, clip_on=False, linestyle="none", zorder=4)
    axes.annotate(
        value, (x, top), (-6, 0), textcoords="offset points", ha="right", va="center", fontsize=SMALL, color=ink(colour)
    )


class Label(NamedTuple):
    """A text for the point (x, y), in the colour of its series."""

    x: float
    y: float
    text: str
    colour: str


def label_ends(axes: Axes, ends: Sequence[Label]) -> None:
    """Write the names of lines to the right of their last points, moved up and down until none touches another.

    Call it when the panel is drawn and its limits are set.
    """
    if not ends:
        return
    right = axes.get_xlim()[1]
    ends = sorted(ends, key=lambda end: end.y)
    labels = [
        axes.annotate(
            end.text, (right, end.y), (6, 0), textcoords="offset points", va="center", fontsize=9, color=ink(end.colour)
        )
        for end in ends
    ]
    boxes = _boxes(axes, labels)
    gap = 1.05 * max(box.height for box in boxes)
    wanted = [(box.y0 + box.y1) / 2 for box in boxes]
    points = 72 / _figure_of(axes).dpi
    for label, before, after in zip(labels, wanted, _spread(wanted, gap), strict=True):
        label.xyann = (6, points * (after - before))


def label_points(axes: Axes, labels: Sequence[Label]) -> None:
    """Write a text beside each point, where it covers neither another text nor a point; left out where none fits.

    Call it when the panel is drawn and its limits are set.
    """
    if not labels:
        return
    look: Any = {"textcoords": "offset points", "fontsize": SMALL, "bbox": BEHIND}
    made = [axes.annotate(one.text, (one.x, one.y), (0, 0), color=ink(one.colour), **look) for one in labels]
    boxes = _boxes(axes, made)
    centres = [axes.transData.transform((one.x, one.y)) for one in labels]
    scale = _figure_of(axes).dpi / 72
    frame = axes.get_window_extent()
    taken = [Bbox.from_bounds(x - 4 * scale, y - 4 * scale, 8 * scale, 8 * scale) for x, y in centres]
    places = [(dx, dy) for dy in (0, 10, -10, 20, -20) for dx in (1, -1)]
    for label, box, (x, y) in zip(made, boxes, centres, strict=True):
        for side, up in places:
            left = x + 7 * scale if side > 0 else x - 7 * scale - box.width
            tried = Bbox.from_bounds(left, y + up * scale - box.height / 2, box.width, box.height)
            if frame.x0 <= tried.x0 and tried.x1 <= frame.x1 and not any(tried.overlaps(other) for other in taken):
                taken.append(tried)
                label.xyann = (7 * side, up)
                label.set(ha="left" if side > 0 else "right", va="center")
                break
        else:
            label.remove()


def headline(figure: Figure, text: str) -> None:
    """Write the title of a figure above all of its panels."""
    figure.suptitle(_wrapped(figure, text, 10), fontsize=10, x=0.01, ha="left")


def plain_log(axis: Axis) -> None:
    """Name 1, 2 and 5 of each decade on a logarithmic axis, without exponents."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def caption(figure: Figure, text: str) -> None:
    """Write below a figure what its marks mean."""
    figure.supxlabel(_wrapped(figure, text, SMALL), fontsize=SMALL, color=GREY, x=0.01, ha="left")


def _wrapped(figure: Figure, text: str, size: float) -> str:
    """Break `text` to the width of the figure."""
    return fill(text, int(72 * figure.get_figwidth() / (_LETTER * size)))


def _figure_of(axes: Axes) -> Figure:
    return cast("Figure", axes.get_figure(root=True))


def _boxes(axes: Axes, texts: Sequence[Annotation]) -> list[Bbox]:
    """Return the boxes in pixels of texts once the figure is laid out."""
    figure = _figure_of(axes)
    figure.draw_without_rendering()
    return [text.get_window_extent() for text in texts]


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return the places nearest to those `wanted`, in rising order, that lie `gap` or more apart.

    Neighbours that are too close are joined to a block, which stands around the mean of what its members want.
    """
    blocks: list[tuple[float, int]] = []  # the sum of the wanted places of the first member, and the members
    for place in wanted:
        total, count = place, 1
        while blocks and total / count < blocks[-1][0] / blocks[-1][1] + gap * blocks[-1][1]:
            before, members = blocks.pop()
            total, count = before + total - gap * members * count, members + count
        blocks.append((total, count))
    return [total / count + gap * number for total, count in blocks for number in range(count)]
