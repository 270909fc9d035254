"""The page of a sweep."""

from __future__ import annotations

import copy

import pytest
from matplotlib.figure import Figure

from memsim.report.drawing import svg_of
from memsim.report.sweep_page import sweep_page
from tests.pages import Page
from tests.report.conftest import Written


@pytest.fixture(scope="module")
def points(evaluation: Written) -> list[dict]:
    facts = evaluation[0]
    made = []
    for bits, read_noise in ((4, None), (6, None), (8, "physics")):
        made.append(copy.deepcopy(facts) | {"settings": {"adc.bits": bits, "read_noise": read_noise}})
    made[2]["intervals"]["to_digital"]["relative"] = None
    made[2]["mapped"]["wer"]["mean"] = 0.98765
    return made


def test_a_row_a_point(points: list[dict]) -> None:
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    page = Page.of(sweep_page(points, svg_of(figure), "memsim eval --set adc.bits=4,6,8"))
    assert page.headings == [
        "tiny.safetensors on physical with weights.bits=3, programming.relaxation=0.02, faults.stuck_lrs=0.01, "
        "retention.age_seconds=1e6, over adc.bits, read_noise",
        "Points",
        "To repeat it",
        "Hardware of the first point",
    ]
    assert [image["alt"] for image in page.images] == ["WER against adc.bits, read_noise"]
    for said in (
        "4none",
        "6none",
        "8physics",
        "98.77 (",
        "3 points, each of 3 utterances",
        "greedy decoding",
        "--set adc.bits=4,6,8",
        "unusable",
        "adc.bits=4, read_noise=none: full precision: unusable: WER",
        "Full precision: WER ",
        "95% interval over 3 utterances, of these 3 chips",
        "retention, faults, programming.relaxation: laws whose numbers come from the spec",
    ):
        assert said in page.text


def test_the_same_figure_gives_the_same_svg() -> None:
    def drawn() -> bytes:
        figure = Figure()
        figure.add_subplot().plot([1, 2])
        return svg_of(figure)

    assert drawn() == drawn()
