"""Relaxation and drift of the states of programmed cells."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memsim.crossbar import ageing, compiled_cells
from memsim.crossbar.ageing import age, relax, relaxed
from memsim.crossbar.matrix import MappedMatrix
from memsim.device import DeviceModel
from memsim.hardware import Retention
from tests.crossbar.by_hand import spec_of


def test_relaxation_spreads_currents_by_its_fraction(device: DeviceModel) -> None:
    n = 100_000
    volts = torch.tensor(device.reference_volts, dtype=torch.float64)
    for state in (0.16, 0.7, 0.84):
        before = torch.full((n,), state, dtype=torch.float32)
        after = before.clone()
        relax(after, 0.02, device, 1)
        ratio = device.current_amperes(volts, after.double()) / device.current_amperes(volts, before.double())
        assert ratio.mean().item() == pytest.approx(1, abs=5 * 0.02 / math.sqrt(n))
        assert ratio.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * n))


def test_no_relaxation_turns_a_current_round(device: DeviceModel) -> None:
    states = torch.full((100_000,), 0.5)
    relax(states, 0.5, device, 1)
    volts = torch.tensor(device.reference_volts)
    currents = device.current_amperes(volts, states)
    assert currents.min() >= -1e-10  # beyond the rounding of currents of 5e-5 A
    nothing = (currents < 1e-10).double().mean().item()
    assert nothing == pytest.approx(0.0228, abs=5 * math.sqrt(0.0228 / 100_000))  # two standard deviations below


def test_relaxation_comes_after_programming_and_its_draws_are_its_own() -> None:
    """The same cells as without: its normals scale, and nothing else is drawn differently."""
    levels = torch.randint(-3, 4, (40, 40), generator=torch.Generator().manual_seed(1))

    def states(relaxation: float | None, seed: int = 1) -> torch.Tensor:
        spec = spec_of(3, programming={"scheme": "incremental_reset", "relaxation": relaxation})
        matrix = MappedMatrix.from_levels("layer", levels, torch.ones(40), spec, seed)
        assert matrix.states is not None
        return matrix.states.double()

    plain, one, two = states(None), states(0.01), states(0.02)
    torch.testing.assert_close(two - plain, 2 * (one - plain), rtol=0, atol=1.5e-3)  # three roundings to 16 bits
    moved = (two - plain).flatten()
    assert (moved != 0).double().mean() > 0.9
    other = (states(0.02, seed=2) - states(None, seed=2)).flatten()
    assert abs(float(torch.corrcoef(torch.stack([moved, other]))[0, 1])) < 5 / math.sqrt(moved.numel())


# Drift


def aged(states: torch.Tensor, **keys: float) -> torch.Tensor:
    after = states.clone()
    age(after, Retention(**keys), keys["age_seconds"], 1)
    return after


def test_drift_is_the_power_law() -> None:
    states = torch.linspace(0, 1.2, 25)
    torch.testing.assert_close(1 - aged(states, age_seconds=999.0, exponent=0.01), (1 - states) * 1000**-0.01)
    later = aged(states, age_seconds=180.0, exponent=0.1, reference_seconds=20.0)
    torch.testing.assert_close(1 - later, (1 - states) * (1 + 180 / 20) ** -0.1)
    assert torch.equal(aged(states, age_seconds=0.0, exponent=0.1, exponent_std=0.1), states)


def test_every_cell_drifts_with_its_own_exponent() -> None:
    after = aged(torch.zeros(100_000), age_seconds=99.0, exponent=0.01, exponent_std=0.002)
    exponents = -(1 - after).log() / math.log(100)
    assert float(exponents.mean()) == pytest.approx(0.01, rel=0.01)
    assert float(exponents.std()) == pytest.approx(0.002, rel=0.02)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 2000))
def test_compiled_changes_have_the_bits_of_the_definitions(key: int, first: int, n: int) -> None:
    cells = torch.arange(first, first + n)
    r = torch.linspace(-0.5, 1.5, n)
    assert torch.equal(compiled_cells.relaxed(r, cells, key, 0.3, 0.89), relaxed(r, cells, key, 0.3, 0.89))
    assert torch.equal(compiled_cells.aged(r, cells, key, 0.04, 0.1), ageing.aged(r, cells, key, 0.04, 0.1))
