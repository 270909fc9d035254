"""Figures of whole chips."""

from __future__ import annotations

import pytest

from memsim.chip.architecture import load_chip
from memsim.chip.chip_cost import ChipCost
from memsim.chip.workload import DigitalWork, Workload
from memsim.report import chip_figures
from memsim.report.chip_cells import break_even_text, chip_rows, placement_text, public_text, schedule_text
from memsim.report.tables import chip_parts
from memsim.report.text import as_text
from tests.chip.works import matrix


@pytest.fixture(scope="module")
def chip() -> dict:
    works = (
        matrix("first", (300, 200), vectors=100, cell_joules=1e-9),
        DigitalWork("attention", "attention", 1, macs=1e6),
        matrix("second", (100, 300), vectors=100, cell_joules=1e-9),
    )
    return ChipCost.of(load_chip({"base": "isaac", "cores": 4, "core": {"arrays": 8}}), Workload(1.0, works)).to_dict()


def test_the_front() -> None:
    assert chip_figures.front([(3.0, 1.0), (1.0, 3.0), (2.0, 3.0), (2.0, 2.0), (4.0, 1.0)]) == [1, 3, 0]


def test_the_floor_plan_has_every_core(chip: dict) -> None:
    drawn = chip_figures.floor_plan(chip).decode()
    strips = sum(len(layer["cores"]) for layer in chip["placement"]["layers"])
    cores = chip["placement"]["chips"] * 4
    assert chip["placement"]["chips"] > 1
    assert drawn.count('<g id="patch_') >= strips + cores


def test_the_tornado_names_prices(chip: dict) -> None:
    drawn = chip_figures.tornado(chip).decode()
    assert all(price["price"] in drawn for price in chip["tornado"][:3])


def test_the_tables(chip: dict) -> None:
    rows = {row[0]: row[1:] for row in chip_rows(chip)}
    assert list(rows)[-2:] == ["mm²", "real-time factor"]
    shown = as_text(*chip_parts(chip))
    for said in (placement_text(chip), schedule_text(chip), break_even_text(chip), public_text(chip)):
        assert said.split(";")[0].split(" (")[0] in " ".join(shown.split())
