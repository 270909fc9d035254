"""The device file of a law of ln g draws what the law draws, at conductances beyond its knots, too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memsim.device.levels.ageing import ageing_of
from memsim.device.levels.file import device_of
from memsim.fit.levels.device import time_sections
from memsim.fit.levels.goodness import CellPath
from memsim.fit.levels.law import Form, Law, Scale

DRAWS = 100_000
HIGH = 60.0


def law_of(knots: list[float], scale: Scale) -> Law:
    """A law of ln g by which cells gain and lose: no drift, whose exponents would all be of one sign."""
    size = len(knots)
    spreads = {"b1": torch.full((size,), 0.04).double()} if scale != "constant" else {}
    by_knot = {"m0": torch.linspace(-0.1, 0.1, size).double(), "b0": torch.full((size,), 0.4).double()} | spreads
    return Law(Form(True, "constant", scale, "gaussian"), torch.tensor(knots).double(), by_knot, {}, 1.0)


@pytest.mark.parametrize("scale", ["constant", "log"])
@pytest.mark.parametrize("knots", [[12.0], [8.0, 12.0, 20.0]])
@pytest.mark.parametrize("start", [2.0, 12.0, 30.0])
def test_changes_of_ln_g_are_in_proportion_to_g(knots: list[float], scale: Scale, start: float) -> None:
    law = law_of(knots, scale)
    document = {"kind": "levels", "name": "mine", "source": "", "microsiemens": {"low": 0.0, "high": HIGH}}
    device = device_of(document | time_sections(law, CellPath("redrawn", 1.0, ()), 0.0, 1e4), "mine")
    ageing = ageing_of(device.file, 100.0, 16, 9, False, torch.device("cpu"))
    assert ageing is not None
    r = ageing(torch.full((DRAWS,), 1 - start / HIGH), torch.zeros(DRAWS, dtype=torch.int32), torch.arange(DRAWS))
    drawn = (1 - r.double().numpy()) * HIGH
    at = torch.full((1,), start).double()
    for probability in (0.05, 0.5, 0.95):
        expected = law.quantile(at, torch.full_like(at, 100.0), probability).item()
        assert np.quantile(drawn, probability) == pytest.approx(expected, rel=0.03)
