"""How many cells a read disturbs: against cells that are really read, and the numbers of the published model."""

from __future__ import annotations

import math

import pytest
import torch

from memsim.crossbar.disturb import disturb_risk
from memsim.device import UR, US, Cells, fraction_below, load_device
from memsim.spec import load_hardware

DEVICE = load_device("synaptogen")


@pytest.mark.parametrize("volts", [0.55, 0.6, 0.65])
def test_as_many_as_when_cells_are_read(volts: float) -> None:
    n = 200_000
    cells = Cells(DEVICE, n, torch.Generator().manual_seed(1))
    before = cells.r.clone()
    cells.apply(-volts)
    expected = 1 - fraction_below(DEVICE, US, -volts)
    assert abs(int((cells.r != before).sum()) - n * expected) < 5 * math.sqrt(n * expected)
    cells.apply(-2.0)
    before = cells.r.clone()
    cells.apply(volts)
    expected = fraction_below(DEVICE, UR, volts)
    assert abs(int((cells.r != before).sum()) - n * expected) < 5 * math.sqrt(n * expected) + 1


def test_the_published_operating_point_is_destructive_and_the_default_is_not() -> None:
    paper = disturb_risk(load_hardware("paper"))
    assert paper is not None
    assert paper.hrs_set == pytest.approx(0.11, abs=0.005)  # from a history of zeros
    assert paper.lrs_reset == pytest.approx(6e-4, rel=0.2)
    assert not paper.is_negligible
    physical = disturb_risk(load_hardware("physical"))
    assert physical is not None
    assert physical.hrs_set < 5e-5
    assert physical.is_negligible


def test_positive_voltages_set_nothing() -> None:
    risk = disturb_risk(load_hardware({"dac": {"polarity": "two_phase", "vmax_volts": 0.6}}))
    assert risk is not None
    assert risk.hrs_set == 0
    assert risk.lrs_reset == pytest.approx(1.48e-3, rel=0.05)
    assert disturb_risk(load_hardware("ideal")) is None
