"""Common parts of the figures of all reports: their style, error bars, and SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREY, BLUE, BAND, RED = "#444444", "#1f6fd0", "#bbbbbb", "#c0392b"

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


class Drawing:
    """A figure of one panel: `axes` to draw on, and `svg` once `drawing` has ended."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.axes: Axes = self.figure.add_subplot()
        self.svg = b""


@contextmanager
def drawing(height: float = 2.9, width: float = 4.2) -> Iterator[Drawing]:
    """Open a block that draws a figure of one panel, `height` x `width` inches.

    The SVG has the same bytes for the same drawing.
    """
    with mpl.rc_context(_STYLE):
        made = Drawing(width, height)
        yield made
        made.svg = svg_of(made.figure)


def svg_of(figure: Figure) -> bytes:
    """Return a figure as SVG, the same bytes for the same figure."""
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "memsim", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def error_bars(middle: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """Return the lengths of bars from `low` to `high` for matplotlib.

    The mean of equal values may be rounded beyond them, so lengths are at least 0.
    """
    below = [max(m - x, 0.0) for m, x in zip(middle, low, strict=True)]
    return [below, [max(x - m, 0.0) for m, x in zip(middle, high, strict=True)]]
