"""Circuits, time and energy of a matrix, against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memsim import load_hardware
from memsim.crossbar.cost import ArrayCost, programming_joules
from memsim.crossbar.programming_report import ProgrammingReport
from memsim.crossbar.tiling import tiling_for
from memsim.hardware import HardwareSpec

PRICES = {
    "dac": {"joules_per_step": 1e-15, "driver_joules": 2e-13, "seconds": 3e-9, "square_micrometres_per_step": 0.5},
    "adc": {"joules_per_step": 1e-14, "seconds": 1e-9, "square_micrometres": 1000.0, "columns_per_adc": 2},
    "cell": {"read_seconds": 1e-7, "square_micrometres": 0.1},
}


def spec_of(**changes: Any) -> HardwareSpec:
    tile = {"rows": 2, "cols": 4}
    return load_hardware({"base": "physical", "weights": {"bits": 3}, "tile": tile, "cost": PRICES, **changes})


def cost_of(shape: tuple[int, int] = (5, 3), groups: int = 1, **changes: Any) -> ArrayCost:
    """Of a matrix of 5 outputs and 3 inputs, unless told otherwise."""
    spec = spec_of(**changes)
    return ArrayCost.of(tiling_for(shape, spec, groups), spec)


def test_an_example_by_hand() -> None:
    cost = cost_of()
    # 2 row tiles, 2 column tiles, 2 slices, 2 polarities
    assert (cost.arrays, cost.cells) == (16, 128)
    assert (cost.dacs, cost.adcs) == (32, 16)  # 2 rows an array; 4 columns for each pair of arrays, 2 to an ADC
    assert cost.macs == 15
    assert cost.phases == 1
    assert cost.read_pulses == 15 * 4
    assert cost.dac_conversions == 3 * 2 * 2 * 2  # rows, in each column tile, slice and polarity
    assert cost.adc_conversions == 2 * 2 * 5  # outputs, for each row tile and slice
    assert cost.dac_joules == pytest.approx(24 * (256 * 1e-15 + 2e-13))
    assert cost.adc_joules == pytest.approx(20 * 256 * 1e-14)
    assert cost.seconds == pytest.approx(3e-9 + 1e-7 + 2e-9)  # two columns take turns
    assert cost.square_millimetres == pytest.approx(
        {"cells": 12.8e-6, "dacs": 32 * 128e-6, "adcs": 16e-3, "total": 12.8e-6 + 4.096e-3 + 16e-3}
    )


def test_two_phases_without_a_sign_bit() -> None:
    cost = cost_of(dac={"polarity": "two_phase"})
    assert cost.phases == 2
    assert (cost.dac_conversions, cost.adc_conversions, cost.read_pulses) == (48, 40, 120)
    assert cost.dac_joules == pytest.approx(48 * (128 * 1e-15 + 2e-13))
    assert cost.seconds == pytest.approx(2 * (3e-9 + 1e-7 + 2e-9))


@pytest.mark.parametrize(
    ("dac", "phases", "steps"),
    [
        ({"slice_bits": 1}, 7, 4),
        ({"slice_bits": 3}, 3, 16),
        ({"slice_bits": 3, "polarity": "two_phase"}, 6, 8),
        ({"bits": None}, 1, 0),  # nobody knows what a DAC without steps takes
    ],
)
def test_slices_of_the_input(dac: dict[str, Any], phases: int, steps: int) -> None:
    cost = cost_of(dac=dac)
    assert cost.phases == phases
    assert cost.dac_joules == pytest.approx(phases * 24 * (steps * 1e-15 + 2e-13))
    assert cost.adc_conversions == phases * 20


def test_copies_have_arrays_of_their_own_and_share_an_adc() -> None:
    one, three = cost_of(), cost_of(weights={"bits": 3, "copies": 3})
    assert (three.arrays, three.dacs, three.dac_conversions) == (48, 96, 72)
    assert (three.adcs, three.adc_conversions, three.seconds) == (one.adcs, one.adc_conversions, one.seconds)


def test_arrays_that_share_dacs() -> None:
    shared = cost_of(cost=PRICES | {"dac": PRICES["dac"] | {"arrays_per_dac": 8}})
    assert (shared.dacs, shared.dac_conversions) == (4, 3)  # one a row
    odd = cost_of(cost=PRICES | {"dac": PRICES["dac"] | {"arrays_per_dac": 3}})
    assert (odd.dacs, odd.dac_conversions) == (12, 9)  # 8 arrays need 3


def test_columns_that_take_turns() -> None:
    one_each = cost_of(cost=PRICES | {"adc": PRICES["adc"] | {"columns_per_adc": 1}})
    assert (one_each.adcs, one_each.seconds) == (32, pytest.approx(3e-9 + 1e-7 + 1e-9))
    all_at_one = cost_of(cost=PRICES | {"adc": PRICES["adc"] | {"columns_per_adc": 128}})
    assert (all_at_one.adcs, all_at_one.seconds) == (8, pytest.approx(3e-9 + 1e-7 + 4e-9))
    assert one_each.adc_joules == all_at_one.adc_joules


def test_fixed_converters_and_none() -> None:
    fixed = cost_of(adc={"range": "fixed", "precision_bits": 2, "range_bits": 3})
    assert fixed.adc_joules == pytest.approx(20 * 32 * 1e-14)
    exact = cost_of(cell="ideal", dac=None, adc=None)
    assert (exact.dacs, exact.adcs, exact.dac_joules, exact.adc_joules) == (0, 0, 0, 0)
    assert exact.seconds == 1e-7


def test_blocks_on_a_diagonal() -> None:
    # 5 blocks of 3 outputs and 1 input: one a tile, as two would have 6 columns
    cost = cost_of((15, 1), groups=5)
    assert (cost.arrays, cost.macs) == (5 * 4, 15)
    assert (cost.dac_conversions, cost.adc_conversions, cost.read_pulses) == (5 * 4, 15 * 2, 15 * 4)
    # 3 blocks of 2 outputs and 1 input: two a tile, the last alone
    packed = cost_of((6, 1), groups=3)
    assert (packed.arrays, packed.macs, packed.dac_conversions) == (8, 6, 3 * 4)
    assert packed.read_pulses == (2 * 4 + 1 * 2) * 4


def test_cells_of_a_given_price() -> None:
    simulated, cost = spec_of(), cost_of()
    assert cost.cell_joules(3e-5, simulated) == pytest.approx(3e-12)
    priced = simulated.with_settings({"cost.cell.read_joules": 1e-15})
    assert cost.cell_joules(3e-5, priced) == pytest.approx(60e-15)


REPORT = ProgrammingReport("write_verify", 100, 250, 9, 300, 0, 1.0, 5e-8, ())


@pytest.mark.parametrize(
    ("settings", "joules"),
    [
        ({}, 5e-8),
        ({"cost.cell.write_joules": 1e-10}, 2.5e-8),
        ({"programming.scheme": "write_verify"}, 5e-8),
        ({"programming": "{scheme: write_verify, verify: {adc: {bits: 6}}}"}, 5e-8 + 300 * 64 * 1e-14),
    ],
)
def test_programming(settings: dict[str, Any], joules: float) -> None:
    assert programming_joules(REPORT, spec_of().with_settings(settings)) == pytest.approx(joules)


def test_programming_of_a_device_that_says_nothing_of_its_pulses() -> None:
    silent = replace(REPORT, joules=0.0)
    assert programming_joules(silent, spec_of()) is None
    priced = spec_of().with_settings({"cost.cell.write_joules": 1e-10})
    assert programming_joules(silent, priced) == pytest.approx(2.5e-8)
    assert programming_joules(replace(silent, pulses=0), spec_of()) == 0  # ideal cells
