"""The texts of matplotlib's figures, and whether they cover each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from memsim.report import drawing


def drawn_texts(figure: Figure) -> list[Text]:
    """Return the texts that are drawn, once the figure is laid out."""
    figure.draw_without_rendering()
    beyond = set()  # ticks outside of an axis have texts, which are not drawn
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            outside = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
            beyond |= {text for tick in outside for text in (tick.label1, tick.label2)}
    texts = [text for text in figure.findobj(Text) if text.axes is None or text.axes.get_visible()]
    return [text for text in texts if text.get_visible() and text.get_text().strip() and text not in beyond]


def assert_texts_are_apart(figure: Figure) -> None:
    """Assert that no text covers another one, and that all of them are on the page."""
    page = figure.bbox.padded(1)
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn_texts(figure)]
    for (one, box), (other, box_of_other) in combinations(boxes, 2):
        assert not box.padded(-1).overlaps(box_of_other.padded(-1)), (one, other)
    cut = [one for one, box in boxes if min(box.x0 - page.x0, page.x1 - box.x1, box.y0 - page.y0, page.y1 - box.y1) < 0]
    assert cut == []


@contextmanager
def figures_can_be_read() -> Iterator[list[Figure]]:
    """Open a block in which every panel that is drawn is checked: texts apart, and series named beside the panel.

    Yields the list of the figures that were drawn.
    """
    drawn: list[Figure] = []
    svg_of = drawing.svg_of

    def checked(figure: Figure) -> bytes:
        svg = svg_of(figure)  # first: a second layout moves some panels by a hair
        assert_texts_are_apart(figure)
        texts = {text.get_text() for text in drawn_texts(figure)}
        for axes in figure.axes:
            assert axes.get_legend() is None  # it may cover lines
            assert set(axes.get_legend_handles_labels()[1]) <= texts
        drawn.append(figure)
        return svg

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "svg_of", checked)
        yield drawn
