"""What the figures of all reports have in common: their look, and how one becomes an SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator
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
    """One figure in the making: `axes` to draw on, `svg` once done."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.axes: Axes = self.figure.add_subplot()
        self.svg = b""


@contextmanager
def drawing(height: float = 2.9, width: float = 4.2) -> Iterator[Drawing]:
    """A figure of one panel, in inches; its SVG is the same bytes for the same drawing."""
    with mpl.rc_context(_STYLE):
        made = Drawing(width, height)
        yield made
        made.svg = svg_of(made.figure)


def svg_of(figure: Figure) -> bytes:
    """The same bytes for the same figure."""
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "memsim", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
