"""The figures of README and guides are those of the results beside them, and can be read."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import pytest

from memsim.report.drawing import svg_of
from tests.figure_texts import assert_texts_are_apart, drawn_texts
from tests.tools.guide_figures import (
    COLUMNS,
    FIGURES,
    FOLDER,
    Series,
    by_bits,
    by_bits_row,
    full_precision_row,
    kept,
    table_of,
)

SVG = "{http://www.w3.org/2000/svg}"


def texts_of(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_that_of_its_results(name: str) -> None:
    assert_texts_are_apart(FIGURES[name](FOLDER / name))
    made, written = (
        svg_of(FIGURES[name](FOLDER / name)).decode(),
        (FOLDER / name).with_suffix(".svg").read_text("utf-8"),
    )
    assert texts_of(made) == texts_of(written)
    if f"Matplotlib v{mpl.__version__}," in written:  # other versions may round otherwise
        assert made == written


def test_every_figure_is_drawn_from_committed_results() -> None:
    assert {path.stem for path in FOLDER.glob("*.svg")} == {Path(name).stem for name in FIGURES}
    assert {path.name for path in FOLDER.iterdir() if path.suffix != ".svg"} == FIGURES.keys()


def test_devices_are_named_at_the_ends_of_their_lines_over_time() -> None:
    rows = table_of(FOLDER / "wer-by-time.csv")
    figure = FIGURES["wer-by-time.csv"](FOLDER / "wer-by-time.csv")
    for axes, compensation in zip(figure.axes, ("none", "layer"), strict=True):
        said, top = {text.get_text() for text in axes.texts}, axes.get_ylim()[1]
        last = {row["device"]: float(row["mean"]) for row in rows if row["compensation"] == compensation}
        assert len(last) > 4
        for device, wer in last.items():  # the last one of each is that of the longest time
            name = device.partition(" as ")[0]
            assert (f"{name}: {wer:.0f} %" if wer > top else name) in said
    assert figure.legends == []


@pytest.mark.parametrize("name", ["wer-by-bits.csv", "qat-by-bits.csv"])
def test_a_series_is_named_at_its_end_and_ruined_points_are_arrows(name: str) -> None:
    figure = FIGURES[name](FOLDER / name)
    (axes,) = figure.axes
    rows = table_of(FOLDER / name)
    ruined = [float(row["mean"]) for row in rows if float(row["mean"]) > axes.get_ylim()[1]]
    assert ruined
    said = " ".join(text.get_text() for text in drawn_texts(figure))
    for value in ruined:
        assert f": {value:.0f} %" in said
    assert sum(line.get_marker() == "^" for line in axes.lines) == len(ruined)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["8 bits", "4 bits", "3 bits", "2 bits"]
    assert "bars: from the best to the worst chip" in re.sub(r"\s+", " ", said)
    assert figure.legends == []


def test_points_of_a_place_lie_side_by_side() -> None:
    row = {"chips": "5", "digital": "6", "mean": "6", "min": "5", "max": "7"}
    rows = [row | {"system": system, "bits": bits} for system in "ab" for bits in ("8", "3")]
    figure = by_bits(
        [*rows, {"system": "full precision", "bits": "", "mean": "6"}],
        {"a": Series("one", "#004488", "o"), "b": Series("two", "#bb5566", "s")},
        "title",
        "data",
    )
    places = [container.lines[0].get_xdata()[0] for container in figure.axes[0].containers]
    assert places[1] - places[0] > 0.2
    assert_texts_are_apart(figure)


def test_rows_of_results() -> None:
    chips = by_bits_row("best", 3, 0.0627, [0.06, 0.0651, 0.0633])
    assert list(chips) == list(full_precision_row(0.0644)) == list(COLUMNS)
    assert list(chips.values()) == ["best", 3, 3, "6.27", "6.28", "6.00", "6.51"]
    assert full_precision_row(0.0644)["mean"] == "6.44"


def test_what_is_kept_of_a_sweep_draws_the_same_figure() -> None:
    points = json.loads((FOLDER / "chip-front.json").read_text("utf-8"))
    assert [kept(point) for point in points] == points
