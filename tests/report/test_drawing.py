"""The style of figures: colours that readers can tell apart, and places of labels."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colors

from memsim.report.drawing import Label, _spread, contrast, drawing, ink, label_points, series_colours, top_of

SEEN_BY = {  # G. Machado et al., 2009, severity 1: what is left of linear red, green and blue
    "everybody": np.eye(3),
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopes": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour: str, seen: object) -> np.ndarray:
    """CIE L*, a*, b* of a colour (D65)."""
    rgb = np.array(colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(np.array(seen) @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("seen", SEEN_BY.values(), ids=SEEN_BY)
def test_everybody_tells_the_colours_apart(count: int, seen: object) -> None:
    found = [lab(colour, seen) for colour in series_colours(count)]
    assert min(np.linalg.norm(one - other) for one, other in combinations(found, 2)) > 14  # 2.3 are just noticeable


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_a_grey_printer_keeps_the_colours_apart(count: int) -> None:
    lightness = [lab(colour, np.eye(3))[0] for colour in series_colours(count)]
    assert min(abs(one - other) for one, other in combinations(lightness, 2)) > 11
    assert max(lightness) < 85  # paper has 100


def test_texts_in_all_colours_can_be_read() -> None:
    assert contrast("white") == pytest.approx(1)
    assert contrast("black") == pytest.approx(21)
    for count in range(1, 9):
        assert all(contrast(ink(colour)) >= 4.5 for colour in series_colours(count))


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.floats(0.1, 20))
def test_labels_are_apart_in_order_and_as_near_as_can_be(wanted: list[float], gap: float) -> None:
    wanted = sorted(wanted)
    places = _spread(wanted, gap)
    assert all(after - before >= gap - 1e-6 for before, after in pairwise(places))
    if all(after - before >= gap for before, after in pairwise(wanted)):
        assert places == pytest.approx(wanted)
    assert sum(places) == pytest.approx(sum(wanted), abs=1e-6)  # the mean stays


def test_names_of_points_cover_nothing() -> None:
    with drawing() as panel:
        x = [1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 2.0]
        panel.axes.plot(x, x, "o")
        label_points(panel.axes, [Label(one, one, f"a long name {n}", "black") for n, one in enumerate(x)])
        panel.figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in panel.axes.texts]
        marks = panel.axes.transData.transform(list(zip(x, x, strict=True)))
        frame = panel.axes.get_window_extent().padded(1)
    assert 1 < len(boxes) < len(x)  # not all of them have room
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert not any(box.contains(*mark) for box in boxes for mark in marks)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_only_values_far_from_the_others_are_cut_off() -> None:
    assert top_of([6.0, 7.0, 8.0, 100.0]) == pytest.approx(1.3 * 8)
    assert top_of([6.0, 7.0, 8.0, 25.0]) == math.inf
    assert top_of([100.0, 100.0]) == math.inf
    assert top_of([0.0, 0.0, 0.0, 5.0]) == math.inf
