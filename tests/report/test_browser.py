"""The pages in headless Chromium: on a screen, on a phone and on paper."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memsim.device import DeviceModel
from memsim.fit import FitOptions, fit_model, judge, read_measurements
from memsim.fit.fit_report import page as fit_page
from memsim.report.drawing import svg_of
from memsim.report.sweep_figure import sweep_figure
from memsim.report.sweep_page import sweep_page
from tests.report.conftest import Written
from tests.tools.example_measurements import feature_table, write

pytestmark = pytest.mark.slow

PHONE_PIXELS = 360
PAPER_PIXELS = 718  # A4 less margins of 1 cm, at 96 pixels an inch

OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width && !element.closest('.wide') && box.right > document.documentElement.clientWidth + 1;
}).map(element => element.tagName + ' ' + element.className + ' ' + element.textContent.slice(0, 40))"""
SCROLLED = """() => [...document.querySelectorAll('.wide')]
    .filter(frame => frame.scrollWidth > frame.clientWidth + 1 || frame.scrollHeight > frame.clientHeight + 1)
    .map(frame => [frame.scrollWidth, frame.clientWidth, frame.scrollHeight, frame.clientHeight, frame.innerText])"""
HIDDEN = """() => [...document.querySelectorAll('tr, pre, img')]
    .filter(element => !element.checkVisibility() || !element.getBoundingClientRect().height)
    .map(element => element.textContent.slice(0, 40))"""
SMALLEST_TEXT = """() => Math.min(...[...document.querySelectorAll('p, td, th, small, b, pre')]
    .map(element => parseFloat(getComputedStyle(element).fontSize)))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("MEMSIM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium: install one (Debian: apt install chromium), or name it in $MEMSIM_CHROMIUM")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root has no sandbox
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def fitted(device: DeviceModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("fit") / "cells.parquet"
    write([feature_table(device, 20, 60, 5)], path)
    measured = read_measurements(path)
    fit = fit_model(measured, FitOptions(order=2))
    return fit_page(fit, judge(fit, measured), measured)


@pytest.fixture(scope="module")
def sweep(evaluation: Written) -> str:
    points = [evaluation[0] | {"settings": {"adc.bits": bits, "cell": "synaptogen"}} for bits in range(30)]
    return sweep_page(points, svg_of(sweep_figure(points)), "memsim eval")


@pytest.fixture(scope="module", params=["eval", "map", "sweep", "fit-device"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fixture = {"eval": "evaluation", "map": "mapping", "sweep": "sweep", "fit-device": "fitted"}[request.param]
    written: Written | str = request.getfixturevalue(fixture)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(written if isinstance(written, str) else written[1], "utf-8")
    return path


@pytest.fixture
def opened(browser: Any, path: Path) -> Iterator[Any]:
    """The page, after whose opening nobody has complained and nothing else was asked for."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    page.close()


def test_figures_and_tables_are_there(opened: Any) -> None:
    sizes = opened.evaluate("() => [...document.images].map(image => [image.complete, image.naturalWidth])")
    assert sizes
    assert opened.locator("details").count() >= 1
    assert opened.evaluate(HIDDEN)  # folded
    assert all(complete and width > 100 for complete, width in sizes)
    assert opened.evaluate("() => [...document.querySelectorAll('table')].every(t => t.rows.length > 0)")
    assert opened.locator("table").count() >= 2
    assert opened.locator("h1").inner_text()
    assert opened.evaluate(OVERFLOWING) == []


def test_a_phone_shows_it_without_sideways_scrolling(opened: Any) -> None:
    opened.set_viewport_size({"width": PHONE_PIXELS, "height": 740})
    assert opened.evaluate("() => document.documentElement.scrollWidth") == PHONE_PIXELS
    assert opened.evaluate(OVERFLOWING) == []
    assert opened.evaluate("() => Math.max(...[...document.images].map(image => image.width))") <= PHONE_PIXELS
    assert opened.evaluate("() => Math.min(...[...document.images].map(image => image.width))") > 0.8 * PHONE_PIXELS
    assert opened.evaluate(SMALLEST_TEXT) >= 10.5


def test_paper_shows_all_of_it(opened: Any) -> None:
    opened.emulate_media(media="print")
    opened.set_viewport_size({"width": PAPER_PIXELS, "height": 1000})
    assert opened.evaluate(OVERFLOWING) == []
    assert opened.evaluate(SCROLLED) == []
    assert opened.evaluate(HIDDEN) == []
    margin = dict.fromkeys(("top", "bottom", "left", "right"), "1cm")
    document = opened.pdf(format="A4", margin=margin)
    assert document.startswith(b"%PDF")
    pages = document.count(b"/Type /Page\n") or document.count(b"/Type /Page ")
    assert 2 <= pages <= 40
