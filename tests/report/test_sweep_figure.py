"""Figures of sweeps, from results with known numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import product

import pytest

from memsim.errors import InputError
from memsim.report.drawing import dodged
from memsim.report.sweep_figure import sweep_figure, wer_by_setting
from tests.figure_texts import assert_texts_are_apart


def settings_of(settings):
    return {key if key.endswith("_seconds") else key.replace("_", "."): value for key, value in settings.items()}


def point(wer, digital=0.05, **settings):
    return {
        "settings": settings_of(settings),
        "checkpoint": {"path": "runs/mine.safetensors"},
        "hardware": {"name": "physical", "base": "physical", "changed": {"weights.bits": 3} | settings_of(settings)},
        "data": {"name": "corpora/speech.tsv", "split": "all", "words": 590},
        "digital": {"wer": digital},
        "full_precision": {"wer": 0.04},
        "mapped": {"wer": {"mean": wer, "std": 0.01, "min": wer - 0.01, "max": wer + 0.02}, "trials": [{}, {}]},
    }


GRID = [point(0.3 / adc + 0.1 / dac, 0.1 / dac, adc_bits=adc, dac_bits=dac) for adc in (8, 4, 6) for dac in (3, 8)]


def lines(axes):
    """By label: the points (x, y) of every line of means."""
    return {
        container.get_label(): list(zip(*container.lines[0].get_data(), strict=True)) for container in axes.containers
    }


def test_a_panel_a_key_and_a_line_for_the_others():
    figure = sweep_figure(GRID)
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("adc.bits", "dac.bits")
    shift = dodged(2)[1]
    means = [(place + shift, pytest.approx(100 * (0.3 / adc + 0.1 / 8))) for place, adc in enumerate((4, 6, 8))]
    assert lines(left)["dac.bits=8"] == means
    assert list(lines(left)) == ["dac.bits=3", "dac.bits=8"]
    assert [text.get_text() for text in left.get_xticklabels()] == ["4", "6", "8"]  # side by side, in order
    bars = left.containers[0].lines[2][0].get_segments()
    assert bars[0][:, 1] == pytest.approx([100 * (0.3 / 4 + 0.1 / 3 - 0.01), 100 * (0.3 / 4 + 0.1 / 3 + 0.02)])
    assert {"dac.bits=3", "dac.bits=8"} <= {text.get_text() for text in left.texts}  # at the ends of the lines
    assert figure.legends == []
    assert_texts_are_apart(figure)


def test_words_stand_one_after_the_other():
    points = [point(0.1, cell="synaptogen"), point(0.2, cell="mine"), point(0.3, cell=None)]
    (axes,) = sweep_figure(points).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["synaptogen", "mine", "none"]
    assert [x for x, _ in lines(axes)["mapped"]] == [0, 1, 2]


def test_times_over_decades_have_names_that_do_not_touch():
    ages = (25, 3600, 86400, 2592000, 31536000, 3e9)
    figure = sweep_figure([point(0.1 + 0.01 * n, read_at_seconds=age) for n, age in enumerate(ages)])
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["25 s", "1 h", "1 day", "30 days", "1 year", "95 years"]
    assert_texts_are_apart(figure)


def test_many_numbers_stand_at_their_own_places():
    (axes,) = sweep_figure([point(0.1, faults_stuck=0.001 * 1.7**n) for n in range(12)]).axes
    assert axes.get_xscale() == "log"
    (axes,) = sweep_figure([point(0.1, dac_bits=n) for n in range(1, 12)]).axes
    assert axes.get_xscale() == "linear"
    assert [x for x, _ in lines(axes)["mapped"]] == list(range(1, 12))


def test_a_ruined_point_is_an_arrow_with_its_value():
    wers = (0.1, 0.11, 0.12, 0.98)
    figure = sweep_figure([point(wer, 0.1, weights_bits=bits) for wer, bits in zip(wers, (8, 4, 3, 2), strict=True)])
    (axes,) = figure.axes
    assert 12 < axes.get_ylim()[1] < 20
    assert "98.0" in [text.get_text() for text in axes.texts]
    assert any(line.get_marker() == "^" and line.get_xdata()[0] == 0 for line in axes.lines)
    (axes,) = sweep_figure([point(wer, 0.1, weights_bits=n) for n, wer in enumerate((0.1, 0.2, 0.3))]).axes
    assert axes.get_ylim()[1] > 30
    assert all(line.get_marker() != "^" for line in axes.lines)


def test_the_figure_says_what_was_measured_and_what_its_marks_mean(tmp_path):
    figure = sweep_figure(GRID)
    assert figure.get_suptitle() == "mine on physical with weights.bits=3; speech, 590 words"
    said = " ".join(figure.get_supxlabel().split())
    assert "points: mean of 2 chips; bars: from the best to the worst chip; dashes: the same rounded weights" in said
    wer_by_setting(GRID, tmp_path / "b.svg", title="mine")
    texts = "".join(ElementTree.parse(tmp_path / "b.svg").getroot().itertext())
    assert "mine" in texts
    assert "dac.bits=3" in texts


def with_cost(number, cell, rows):
    made = point(0.12 + 0.01 * number, cell=cell, tile={"rows": rows, "cols": rows})
    joules = {end: factor * (30 + 2 * number) * 1e-6 for end, factor in (("low", 0.5), ("nominal", 1), ("high", 3))}
    return made | {"cost": {"chip": {"joules": joules, "digital": [{"bits": 8, "joules": {"nominal": 31e-6}}]}}}


def test_energies_have_names_that_do_not_touch():
    points = [with_cost(n, cell, rows) for n, (cell, rows) in enumerate(product("ab", (64, 128)))]
    figure = sweep_figure(points)
    front = [axes for axes in figure.axes if axes.get_visible()][-1]
    assert front.get_xlabel() == "µJ for a second of audio, whole chip"
    assert "a / 64 x 64" in [text.get_text() for text in front.texts]
    assert "all prices low or high: times 0.50 to 3.0" in " ".join(figure.get_supxlabel().split())
    assert_texts_are_apart(figure)


def test_the_same_points_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        wer_by_setting(GRID, tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("points", [[], [point(0.1)]])
def test_nothing_swept_is_no_figure(points, tmp_path):
    with pytest.raises(InputError, match="nothing was swept"):
        wer_by_setting(points, tmp_path / "a.svg")
