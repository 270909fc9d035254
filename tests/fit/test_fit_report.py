"""The report: a self-contained page, and the same content as JSON."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from memsim.device import DeviceModel
from memsim.errors import InputError
from memsim.fit import Fit, FitOptions, Goodness, Measurements, fit_model, judge, read_measurements
from memsim.fit import goodness as goodness_
from memsim.fit.fit_report import HTML, JSON, require_folder, summary, write_report
from tests.figure_texts import figures_can_be_read
from tests.pages import Page
from tests.tools.example_measurements import feature_table, sweeps, write


@pytest.fixture(scope="module", params=["features", "sweeps"])
def judged(
    request: pytest.FixtureRequest, device: DeviceModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Fit, Goodness, Measurements]:
    path = tmp_path_factory.mktemp("report") / "some <cells>.parquet"
    if request.param == "sweeps":
        write((block.table() for block in sweeps(device, 20, 30, 5)), path)
    else:
        write([feature_table(device, 20, 60, 5)], path)
    patch = pytest.MonkeyPatch()
    patch.setattr(goodness_, "LEAST_GENERATED", 60_000)
    patch.setattr("memsim.fit.twin.TWIN_CYCLES", 60_000)
    measured = read_measurements(path)
    fit = fit_model(measured, FitOptions(order=2))
    goodness = judge(fit, measured)
    patch.undo()
    return fit, goodness, measured


@pytest.fixture(scope="module")
def page(
    judged: tuple[Fit, Goodness, Measurements], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Page, str, Path]:
    with figures_can_be_read() as drawn:
        path = write_report(tmp_path_factory.mktemp("out") / "report", *judged)
    assert len(drawn) == 4 + 4 + 4 + 6 + 2 + 1 + 2
    text = path.read_text("utf-8")
    parsed = Page()
    parsed.feed(text)
    return parsed, text, path.parent


def test_the_page_is_whole_and_needs_nothing_else(page: tuple[Page, str, Path]) -> None:
    parsed, text, _ = page
    assert parsed.open == []
    assert all(link is not None and link.startswith("data:image/svg+xml;base64,") for link in parsed.links)
    assert "<script" not in text
    assert 'name="viewport" content="width=device-width' in text
    assert len(text) < 2_000_000


def test_every_figure_is_a_picture_with_a_name(page: tuple[Page, str, Path]) -> None:
    parsed = page[0]
    pictures = {image["alt"]: image["src"] for image in parsed.images}
    assert len(pictures) == 4 + 4 + 4 + 6 + 2 + 1 + 2
    for name, source in pictures.items():
        root = ET.fromstring(base64.b64decode(str(source).split(",")[1]))
        assert root.tag.endswith("svg"), name
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 3, name


def test_every_check_is_a_marked_row(page: tuple[Page, str, Path], judged: tuple[Fit, Goodness, Measurements]) -> None:
    parsed, text, _ = page
    _, goodness, _ = judged
    rows = re.findall(r'<tr class="(pass|noise|warn)">', text)
    assert rows == [check.verdict for check in goodness.checks]
    assert summary(goodness) in parsed.text
    assert "some <cells>.parquet" in parsed.text


def test_a_warning_is_seen_at_the_top(judged: tuple[Fit, Goodness, Measurements], tmp_path: Path) -> None:
    fit, goodness, measured = judged
    bad = dataclasses.replace(goodness.checks[0], error=9.0)
    worse = dataclasses.replace(goodness, checks=(bad, *goodness.checks[1:]))
    noted = dataclasses.replace(fit, notes=("one & only",))
    text = write_report(tmp_path, noted, worse, measured).read_text("utf-8")
    opening = text.partition('<div class="opening warn">')[2].partition("</div>")[0]
    assert re.search(rf"The model differs from the measurements in \d+ of {len(worse.checks)} checks\.", opening)
    assert f"{summary(worse)}." in opening
    assert f"{bad.feature}, {bad.quantity}" in opening
    assert re.search(r"[1-9] warning", summary(worse))
    assert "<li>one &amp; only</li>" in text


def test_the_json_holds_the_same(judged: tuple[Fit, Goodness, Measurements], page: tuple[Page, str, Path]) -> None:
    fit, goodness, measured = judged
    facts = json.loads((page[2] / JSON).read_text())
    assert [check["error"] for check in facts["goodness"]["checks"]] == [check.error for check in goodness.checks]
    assert facts["process"]["order"] == 2
    assert facts["fit"]["sha256"] == measured.sha256
    assert facts["mixture"]["components"] == len(fit.model.mixture_weights)


def test_the_same_fit_makes_the_same_page(
    judged: tuple[Fit, Goodness, Measurements], page: tuple[Page, str, Path], tmp_path: Path
) -> None:
    assert write_report(tmp_path, *judged).read_text("utf-8") == page[1]


def test_what_is_in_the_way_is_said_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / HTML).touch()
    require_folder(tmp_path / "new", force=False)
    require_folder(tmp_path / "old", force=True)
    for folder, message in (("file", "is a file"), ("no/where", "does not exist"), ("old", "exists already; --force")):
        with pytest.raises(InputError, match=message):
            require_folder(tmp_path / folder, force=False)
