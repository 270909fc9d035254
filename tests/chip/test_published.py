"""Published chips from their own inputs, within 10 %: the table of configs/chips/README.md."""

from __future__ import annotations

import math
from typing import Any

import pytest

from memsim.chip.architecture import Chip, load_chip
from memsim.chip.chip_cost import ChipCost
from memsim.chip.schedule import vector_seconds
from memsim.chip.workload import MatrixWork, Workload
from tests.chip.works import matrix


def price(value: float) -> dict[str, Any]:
    return {"low": value, "nominal": value, "high": value, "source": "published"}


ISAAC_TILE = {
    "ADCs": (192e-3, "adc"),
    "DACs": (48e-3, "dac"),
    "arrays": (28.8e-3, "cells"),
    "eDRAM, bus and input registers": (42.6e-3, "buffers"),
    "shift-add and output registers": (5.2e-3, "sums"),
    "tile": (330e-3, None),
}
"""Watts of a busy tile (ISCA 2016, table of tile parameters), and the circuit here."""


@pytest.fixture(scope="module")
def isaac() -> tuple[Chip, MatrixWork, ChipCost]:
    """A matrix that fills a tile: 9 bits in cells of 2, inputs bit by bit in 16 reads; every array has its ADC."""
    cells = {"core.cell_joules": price(1.83e-15), "core.cell_square_micrometres": price(1.5e-3)}
    chip = load_chip("isaac").with_settings({"core.pairs": "apart", **cells})
    work = matrix(
        shape=(384, 512),
        weights={"bits": 9, "encoding": "multilevel", "cell_bits": 2},
        programming={"scheme": "incremental_reset"},
        dac={"bits": 9, "polarity": "two_phase", "slice_bits": 1},
    )
    return chip, work, ChipCost.of(chip, Workload(1.0, (work,)))


def test_the_tile_of_isaac_is_full(isaac) -> None:
    _, work, cost = isaac
    assert work.phases == 16
    assert (cost.placement.cores, cost.placement.array_utilisation, cost.placement.cell_utilisation) == (1, 1.0, 1.0)


@pytest.mark.parametrize("circuit", ISAAC_TILE)
def test_power_of_the_tile_of_isaac(isaac, circuit: str) -> None:
    chip, work, cost = isaac
    published, own = ISAAC_TILE[circuit]
    joules = cost.energies().by_layer["layer"]
    watts = (math.fsum(joules.values()) if own is None else joules[own]) / vector_seconds(work, chip)
    assert watts == pytest.approx(published, rel=0.1)


def test_area_of_isaac(isaac) -> None:
    chip, _, cost = isaac
    areas = cost.areas()
    tile = math.fsum(areas[part] for part in ("cells", "dac", "adc", "cores"))
    assert areas["adc"] == pytest.approx(12 * 0.0096, rel=0.01)
    assert tile == pytest.approx(0.372, rel=0.1)
    whole = chip.cores * tile + chip.prices()["links.square_millimetres"]
    assert whole == pytest.approx(85.4, rel=0.1)


HERMES = {
    "one read": ({}, 63.1e12, 9.76e12),
    "four reads": ({"polarity": "two_phase", "slice_bits": 4}, 16.1e12, 2.48e12),
}
"""The drive, and the published operations a second and a joule of the 64-core chip."""


@pytest.mark.parametrize("mode", HERMES)
def test_the_64_core_chip_from_its_core(mode: str) -> None:
    """Its inputs are those of the core: 256 x 256, 8 bits at 1 GHz, 10.5 TOPS/W and 1.59 TOPS/mm2 in one read."""
    drive, throughput, efficiency = HERMES[mode]
    chip = load_chip("pcm-64-core").with_settings({"core.cell_joules": price(7.1e-15)})
    # in units of 64 cores; 256 inputs each, as in the published benchmark
    work = matrix(
        shape=(64 * 256, 256),
        tile={"rows": 256, "cols": 256},
        weights={"bits": 2, "copies": 2},
        dac={"bits": 8, **drive},
    )
    cost = ChipCost.of(chip, Workload(1.0, (work,)))
    assert (cost.placement.cores, cost.placement.chips, cost.placement.array_utilisation) == (64, 1, 1.0)
    operations = 2 * work.macs
    assert operations / vector_seconds(work, chip) == pytest.approx(throughput, rel=0.1)
    joules = math.fsum(cost.energies().by_layer["layer"].values())
    assert operations / joules == pytest.approx(efficiency, rel=0.1)


def test_the_core_of_the_64_core_chip() -> None:
    chip = load_chip("pcm-64-core").with_settings({"core.cell_joules": price(7.1e-15)})
    work = matrix(shape=(256, 256), tile={"rows": 256, "cols": 256}, weights={"bits": 2, "copies": 2})
    cost = ChipCost.of(chip, Workload(1.0, (work,)))
    parts = cost.energies().by_layer["layer"]
    core = math.fsum(parts[own] for own in ("adc", "dac", "cells", "sums", "buffers"))
    areas = cost.areas()
    square_millimetres = math.fsum(areas[part] for part in ("cells", "dac", "adc", "cores"))
    assert 2 * work.macs / core == pytest.approx(10.5e12, rel=0.1)
    assert 2 * work.macs / vector_seconds(work, chip) / square_millimetres == pytest.approx(1.59e12, rel=0.1)
