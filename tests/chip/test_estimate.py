"""Energy and area: an example by hand, totals that are conserved, the digital alternative, ranges and break-even."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.chip.architecture import Chip, load_chip
from memsim.chip.chip_cost import ChipCost
from memsim.chip.estimate import CIRCUITS
from memsim.chip.workload import DigitalWork, Workload
from memsim.report.chip_cells import verdict_text
from tests.chip.works import matrix

SMALL = {"tile": {"rows": 4, "cols": 4}}
UNIT = {"low": 1.0, "nominal": 1.0, "high": 1.0, "source": "a test", "node_nanometres": None}


@cache
def unit_chip() -> Chip:
    """A chip all of whose prices are 1, so that energies are counts."""
    chip = load_chip({"base": "isaac", "cores": 4, "core": {"arrays": 8}})
    keys = [key for key in chip.priced() if not key.startswith("public.")]
    return chip.with_settings(dict.fromkeys(keys, UNIT))


def test_counts_by_hand() -> None:
    """The matrix of `test_placement.test_by_hand`, for two vectors in one second, with every price 1."""
    work = matrix("layer", (5, 6), vectors=2, cell_joules=3.0, **SMALL)
    cost = ChipCost.of(unit_chip(), Workload(1.0, (work,)))
    parts = cost.energies().by_layer["layer"]
    # 6 rows on each of 2 column tiles, 2 slices and 2 polarities, each with 256 steps of an 8-bit DAC and a driver
    assert parts["dac"] == 2 * (6 * 2 * 2 * 2) * (256 + 1)
    # 5 outputs of 2 row tiles and 2 slices, 256 steps
    assert parts["adc"] == 2 * (5 * 2 * 2) * 256
    assert parts["cells"] == 2 * 3.0
    assert parts["sums"] == 2 * (5 * 2 * 2 + 5)
    # registers of 6 rows x 2 column tiles x 2 slices; 6 inputs written and read for the core; 5 results
    assert parts["buffers"] == 2 * (24 + 12 + 5)
    assert parts["network"] == 2 * (12 + 6 + 2 + 10)
    assert parts["links"] == 0
    areas = cost.areas()
    assert areas["cells"] == pytest.approx(1e-6 * 16 * 16)
    assert areas["adc"] == pytest.approx(1e-6 * 8)  # 8 pairs, one ADC for 4 columns
    assert areas["dac"] == pytest.approx(1e-6 * 16 * 4 * (1 + 256))
    assert (areas["cores"], areas["links"], areas["digital"], areas["memory"]) == (2, 0, 1, 0)


def test_the_alternative_by_hand() -> None:
    """A product of 40 x 70 weights for 100 vectors in two rounds, 32 x 32 multipliers."""
    work = DigitalWork("product", "product", 2, 280_000, vectors=100, inputs=70, outputs=40, weights=2800)
    cost = ChipCost.of(unit_chip(), Workload(1.0, (work,)))
    found = cost.alternative(8)
    parts = found.energies.by_layer["product"]
    assert parts["products"] == 280_000
    # weights are read twice in each round (50 vectors, 32 at a time); inputs for each 32 of 40 outputs
    assert parts["memory"] == 2800 * 2 * 2 + 100 * 70 * 2 + 100 * 40
    assert parts["dram"] == 0
    assert found.sram_share == 1
    # 3 x 2 blocks, 50 vectors each, two rounds, at 1 GHz
    assert found.seconds == pytest.approx(2 * 6 * 50 * 1e-9)
    assert cost.alternative(4).energies.by_layer["product"]["memory"] == 1400 * 4 + 14_000 + 4000


def test_weights_that_do_not_fit_come_from_dram_in_every_round() -> None:
    work = DigitalWork("product", "product", 10, 28_000, vectors=10, inputs=70, outputs=40, weights=2800)
    chip = unit_chip().with_settings({"accelerator.sram_bytes": 700})
    found = ChipCost.of(chip, Workload(1.0, (work,))).alternative(8)
    assert found.sram_share == 0.25
    assert found.energies.by_layer["product"]["dram"] == 0.75 * 2800 * 10


def some_cost(sizes: list[tuple[int, int, int]], name: str = "isaac", **changes) -> ChipCost:
    works: list = []
    for n, (out, width, vectors) in enumerate(sizes):
        works.append(matrix(f"layer {n}", (out, width), vectors=vectors, cell_joules=1e-12, **SMALL))
        works.append(DigitalWork(f"norm {n}", "other", 1, special=vectors, elementwise=vectors * out))
        works.append(DigitalWork(f"attention {n}", "attention", 1, macs=vectors * vectors * out))
    return ChipCost.of(_chip(name, json.dumps(changes)), Workload(2.0, tuple(works)))


@cache
def _chip(name: str, changes: str) -> Chip:
    return load_chip({"base": name, "cores": 3, **json.loads(changes)})


layers = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=15)
@given(layers, st.sampled_from(["isaac", "pcm-64-core"]), st.sampled_from(["computing", "always"]))
def test_totals_are_conserved(sizes: list[tuple[int, int, int]], name: str, powered: str) -> None:
    cost = some_cost(sizes, name, powered=powered)
    for found in (cost.energies(), cost.alternative(8).energies, cost.alternative(4).energies):
        assert math.fsum(found.layers.values()) == pytest.approx(found.joules)
        assert math.fsum(found.by_circuit.values()) == pytest.approx(found.joules)
        assert set(found.by_circuit) <= {*CIRCUITS, "dram"}
    interval = cost.joules
    assert interval.low <= interval.nominal <= interval.high
    assert cost.ratio.low <= cost.ratio.nominal <= cost.ratio.high
    for price in cost.tornado:
        assert interval.low <= price.low <= interval.nominal <= price.high <= interval.high


def test_the_sum_of_all_prices_ranges_is_the_interval() -> None:
    """Energy is linear in each price, so without the product of leakage and area the ranges add up."""
    cost = some_cost([(20, 20, 10)])
    free = dict.fromkeys(("leakage_watts_per_square_millimetre",), 0.0)
    high, nominal = cost.chip.prices("high") | free, cost.chip.prices() | free
    rises = [cost.energies(nominal | {key: high[key]}).joules - cost.energies(nominal).joules for key in nominal]
    assert math.fsum(rises) == pytest.approx(cost.energies(high).joules - cost.energies(nominal).joules)


def test_break_even_is_where_both_take_the_same() -> None:
    cost = some_cost([(20, 20, 10)])
    key = "core.adc_joules_per_step"
    cheap = cost.chip.with_settings({"accelerator.rows": 1, "accelerator.sram_bytes": 1})
    cost = ChipCost.of(cheap, cost.workload)
    price = cost.break_even_price(key)
    assert price is not None
    prices = cost.chip.prices() | {key: price}
    assert cost.energies(prices).joules == pytest.approx(cost.alternative(8, prices).energies.joules)


def test_no_price_lets_it_win_where_all_else_takes_more() -> None:
    cost = some_cost([(2, 2, 1)])
    own = cost.chip.with_settings({"core.driver_joules": {**UNIT}})
    assert ChipCost.of(own, cost.workload).break_even_price("core.adc_joules_per_step") is None


def test_cells_that_are_not_known_are_named() -> None:
    cost = ChipCost.of(unit_chip(), Workload(1.0, (matrix("layer", (5, 6), **SMALL),)))
    assert cost.energies().by_layer["layer"]["cells"] == 0
    assert "cells, whose energy is unknown, are left out" in verdict_text(cost.to_dict())
    known = ChipCost.of(unit_chip().with_settings({"core.cell_joules": UNIT}), cost.workload)
    # 30 weights on 2 slices and 2 polarities
    assert known.energies().by_layer["layer"]["cells"] == 30 * 2 * 2
    assert "left out" not in verdict_text(known.to_dict())


def test_other_tiles_hold_the_same_weights() -> None:
    cost = some_cost([(30, 30, 5)])
    other = cost.on_tiles(16)
    assert other.workload.macs == cost.workload.macs
    assert other.placement.arrays < cost.placement.arrays
    assert other.macs_per_conversion > cost.macs_per_conversion
