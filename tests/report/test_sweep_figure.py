"""Figures of sweeps, from results with known numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from memsim.errors import InputError
from memsim.report.sweep_figure import sweep_figure, wer_by_setting


def point(wer, digital=0.05, **settings):
    return {
        "settings": {key.replace("_", "."): value for key, value in settings.items()},
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
    left, right = sweep_figure(GRID).axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("adc.bits", "dac.bits")
    assert lines(left)["mapped, dac.bits=8"] == [(adc, pytest.approx(100 * (0.3 / adc + 0.1 / 8))) for adc in (4, 6, 8)]
    assert list(lines(left)) == ["mapped, dac.bits=3", "mapped, dac.bits=8"]
    assert [x for x, _ in lines(right)["mapped, adc.bits=4"]] == [3, 8]
    assert [text.get_text() for text in left.get_xticklabels()] == ["8", "4", "6"]
    bars = left.containers[0].lines[2][0].get_segments()
    assert bars[0][:, 1] == pytest.approx([100 * (0.3 / 4 + 0.1 / 3 - 0.01), 100 * (0.3 / 4 + 0.1 / 3 + 0.02)])
    legend = [text.get_text() for text in left.get_legend().get_texts()]
    assert legend == ["digital, quantised", "full precision", "mapped, dac.bits=3", "mapped, dac.bits=8"]


def test_words_stand_one_after_the_other():
    points = [point(0.1, cell="synaptogen"), point(0.2, cell="mine"), point(0.3, cell=None)]
    (axes,) = sweep_figure(points).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["synaptogen", "mine", "none"]
    assert [x for x, _ in lines(axes)["mapped"]] == [0, 1, 2]


def test_the_title_says_what_was_measured(tmp_path):
    assert sweep_figure(GRID).get_suptitle() == "speech, 590 words, 2 chips per point"
    wer_by_setting(GRID, tmp_path / "a.svg")
    wer_by_setting(GRID, tmp_path / "b.svg", title="mine")
    texts = "".join(ElementTree.parse(tmp_path / "b.svg").getroot().itertext())
    assert "mine" in texts
    assert "dac.bits=3" in texts


def test_the_same_points_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        wer_by_setting(GRID, tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("points", [[], [point(0.1)]])
def test_nothing_swept_is_no_figure(points, tmp_path):
    with pytest.raises(InputError, match="nothing was swept"):
        wer_by_setting(points, tmp_path / "a.svg")
