"""The page of a mapping."""

from __future__ import annotations

import copy
import re

import pytest

from memsim.report.mapping_page import mapping_page
from tests.pages import Page
from tests.report.conftest import Written


@pytest.fixture(scope="module")
def page(mapping: Written) -> Page:
    return Page.of(mapping[1])


def test_every_section_is_there(page: Page) -> None:
    sections = ["Layers", "Programming", "Error budget", "Cost", "Whole chip", "Digital", "To repeat it", "Hardware"]
    assert page.headings[1:] == sections
    assert len(page.images) == 1 + 2 + 1 + 2


def test_every_layer_and_what_stayed_digital(page: Page, mapping: Written) -> None:
    result, text = mapping
    assert len(result["layers"]) == 10
    for layer in result["layers"]:
        assert re.search(rf'<td class="text">{re.escape(layer["name"])}</td>', text)
        assert f"{100 * layer['programming_error']:.1f}" in text
    for layer in result["digital"]:
        assert layer["name"] in page.text
        assert layer["reason"] in page.text
    (report,) = result["programming"]
    assert report["scheme"] in page.text
    assert f"{report['pulses_per_cell']['mean']:.2f}" in page.text


def test_it_can_be_repeated(page: Page, mapping: Written) -> None:
    assert "--hardware best --bits 3 --seed 7" in page.text
    assert mapping[0]["seed"] == 7
    assert mapping[0]["checkpoint"]["sha256"] in page.text


def test_exact_hardware_has_no_programming(mapping: Written) -> None:
    result = copy.deepcopy(mapping[0])
    result["programming"], result["digital"] = [], []
    for layer in result["layers"]:
        layer["programming_error"] = 0.0
    del result["budget"], result["cost"]
    page = Page.of(mapping_page(result, "memsim map"))
    assert page.headings[1:] == ["Layers", "To repeat it", "Hardware"]
