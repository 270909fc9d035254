"""Fits of levels: held-out cells at a held-out time, and the device file draws what its law says."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch

from memsim import fit_device, inspect_measurements
from memsim.device import load_device
from memsim.device.levels.ageing import ageing_of
from memsim.device.levels.device import LevelsDevice
from memsim.errors import InputError
from memsim.fit.levels.fit import LevelsFit
from tests.figure_texts import figures_can_be_read
from tests.pages import Page
from tests.tools.example_levels import readings, summary, write

KINDS = {"rram": 300, "pcm": 200, "stable": 120}
DRAWS = 60_000


@pytest.fixture(scope="module", params=KINDS)
def fit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, LevelsFit]:
    folder = tmp_path_factory.mktemp(request.param)
    write(readings(request.param, KINDS[request.param], 3), folder / "cells.csv")
    found = fit_device(folder / "cells.csv", folder / "mine.yaml")
    assert isinstance(found, LevelsFit)
    return request.param, found


def aged(device: LevelsDevice, start: float, seconds: float) -> np.ndarray:
    """Conductances [DRAWS] in µS of cells programmed to `start`, after a time."""
    ageing = ageing_of(device.file, seconds, 16, 9, False, torch.device("cpu"))
    assert ageing is not None
    high = device.file.microsiemens.high
    r = ageing(torch.full((DRAWS,), 1 - start / high), torch.zeros(DRAWS, dtype=torch.int32), torch.arange(DRAWS))
    return (1 - r.double().numpy()) * high


def test_held_out_cells_at_the_held_out_time_are_covered(fit: tuple[str, LevelsFit]) -> None:
    kind, found = fit
    checks = {(c.feature, c.quantity): c for c in found.checks if not c.where.startswith("at ")}
    last = "relaxation, held-out cells, held-out last time"
    cells = KINDS[kind] // 2
    error = (0.09 / cells) ** 0.5
    assert checks[last, "readings in 90% intervals"].generated == pytest.approx(0.9, abs=0.03 + 2 * error)
    likelihood = checks[last, "log-likelihood a reading"]
    assert likelihood.generated is not None
    assert likelihood.measured is not None
    gain = {"rram": 0.3, "pcm": 0.8, "stable": -0.1}[kind]  # nats, above a law that is constant in time
    assert likelihood.generated - likelihood.measured > gain
    form = found.laws["relaxation"]
    assert form["relative"] == (kind == "pcm")


def test_the_file_draws_what_the_law_says(fit: tuple[str, LevelsFit]) -> None:
    kind, found = fit
    device = load_device(found.files[0])
    assert isinstance(device, LevelsDevice)
    table = found.tables["relaxation"]
    if kind == "pcm":  # cells of a bin differ by as much as they drift: the law of ln g itself, at each conductance
        law = found.laws["relaxation"]
        for seconds in table.seconds[[1, -1]]:
            since = np.log(seconds / law["first_seconds"])
            for level in table.levels:
                m0, m1, b0, b1 = (
                    np.interp(level, law["knots_microsiemens"], law[key]) for key in ("m0", "m1", "b0", "b1")
                )
                left = aged(device, float(level), float(seconds) - law["first_seconds"]) / level
                assert np.median(left) == pytest.approx(np.exp(m0 + m1 * since), rel=0.02)
                assert np.log(left).std() == pytest.approx(np.hypot(b0, b1 * since), rel=0.1)
        return
    for t in (1, len(table.seconds) - 1):
        for k, level in enumerate(table.levels):
            change = aged(device, float(level), float(table.seconds[t])) - level
            spread = table.modelled[t, k, 6]
            assert change.mean() == pytest.approx(table.modelled[t, k, 5], abs=0.35 * spread + 0.05)
            assert change.std() == pytest.approx(spread, rel=0.35)
            assert np.quantile(change, 0.5) == pytest.approx(table.modelled[t, k, 2], abs=0.35 * spread + 0.05)


def test_drift_is_a_power_law_with_exponents_of_its_own(fit: tuple[str, LevelsFit]) -> None:
    kind, found = fit
    if kind != "pcm":
        assert "drift" not in found.document
        return
    drift = found.document["drift"]
    assert drift["reference_seconds"] == 20
    knots = found.laws["relaxation"]["knots_microsiemens"]
    mean = drift["exponent_mean"]
    at, values = (mean["table"]["at"], mean["table"]["values"]) if isinstance(mean, dict) else (knots, [mean])
    np.testing.assert_allclose(values, 0.06 - 0.001 * np.array(at), atol=0.008)


def test_a_page_a_table_and_the_same_numbers_in_json(fit: tuple[str, LevelsFit], tmp_path: Path) -> None:
    _, found = fit
    parsed = Page()
    with figures_can_be_read() as drawn:
        parsed.feed(found.write_report(tmp_path / "report").read_text("utf-8"))
    assert len(drawn) == len(parsed.images)
    assert parsed.open == []
    assert len(parsed.images) == 1 + sum(len(t.levels) for t in found.tables.values() if len(t.seconds) > 1)
    for image in parsed.images:
        assert ET.fromstring(base64.b64decode(str(image["src"]).split(",")[1])).tag.endswith("svg")
    facts = json.loads((tmp_path / "report" / "report.json").read_text())
    assert facts == json.loads(json.dumps(found.to_dict()))
    assert [check["verdict"] for check in facts["goodness"]["checks"]] == [check.verdict for check in found.checks]
    assert all(line in parsed.text for line in found.extrapolated)
    assert "a device of levels, from cells.csv: readings of levels" in str(found)


def test_a_summary_goes_through_its_values(tmp_path: Path) -> None:
    write(summary(80, 5), tmp_path / "levels.csv")
    found = fit_device(tmp_path / "levels.csv", tmp_path / "mine.yaml")
    assert isinstance(found, LevelsFit)
    assert found.kind == "summary"
    table = inspect_measurements(tmp_path / "levels.csv").measurements
    device = load_device(tmp_path / "mine.yaml")
    assert isinstance(device, LevelsDevice)
    programming = found.document["programming"]
    np.testing.assert_allclose(programming["mean"]["table"]["values"], table.mean[0] - table.targets, atol=1e-3)
    np.testing.assert_allclose(programming["spread"]["table"]["values"], table.deviation[0], rtol=1e-3)
    grid = found.document["relaxation"]["spread"]["grid"]
    added = np.sqrt(np.maximum(table.deviation[1:] ** 2 - table.deviation[0] ** 2, 0))
    np.testing.assert_allclose(np.array(grid["values"])[: len(added)], added, atol=2e-3)
    assert {check.feature for check in found.checks} == {"held-out last time"}
    assert "no spread is added" in " ".join(found.extrapolated) or (added > 0).all()


def test_levels_of_one_time_have_a_programming_error_alone(tmp_path: Path) -> None:
    table = readings("rram", 200, 4)
    first = table["time_seconds"] == 0
    write({name: values[first] for name, values in table.items() if name != "time_seconds"}, tmp_path / "cells.csv")
    found = fit_device(tmp_path / "cells.csv", tmp_path / "mine.yaml")
    assert isinstance(found, LevelsFit)
    assert set(found.laws) == {"programming"}
    assert "relaxation and drift: one time was measured" in " ".join(found.extrapolated)
    spread = found.document["programming"]["spread"]
    if isinstance(spread, dict):
        true = 0.3 + 0.01 * np.array(spread["table"]["at"])
        np.testing.assert_allclose(spread["table"]["values"], true, rtol=0.35)


def test_the_shipped_relaxation_is_that_of_its_measurements() -> None:
    """Quantiles, 5, 50 and 95 %, of the change of the cells of technology B at 10,000 s, by conductance."""
    device = load_device("rram-relaxation")
    assert isinstance(device, LevelsDevice)
    measured = {32.6: (-19.99, -1.54, 10.93), 54.5: (-26.98, -0.80, 8.25), 98.7: (-1.93, 0.07, 1.79)}
    for start, quantiles in measured.items():
        change = aged(device, start, 9998.0) - start
        low, middle, high = np.quantile(change, [0.05, 0.5, 0.95])
        width = quantiles[2] - quantiles[0]
        assert low == pytest.approx(quantiles[0], abs=0.12 * width)
        assert middle == pytest.approx(quantiles[1], abs=0.05 * width)
        assert high == pytest.approx(quantiles[2], abs=0.15 * width)


def test_a_temperature_is_for_levels(tmp_path: Path) -> None:
    (tmp_path / "cycles.csv").write_text("device,cycle,hrs_ohms,us_volts,lrs_ohms,ur_volts\n1,1,1e5,-1,5e3,1\n")
    with pytest.raises(InputError, match="is for tables of levels"):
        fit_device(tmp_path / "cycles.csv", temperature_kelvin=300)
