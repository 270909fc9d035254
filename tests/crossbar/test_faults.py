"""Faults: the number and choice of cells, and the effect on products."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from memsim.crossbar.cell import zero_current_state
from memsim.crossbar.faults import apply_faults
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.tiling import Tiling
from memsim.device import load_device
from memsim.errors import InputError
from memsim.hardware import Faults, load_hardware
from tests.crossbar.by_hand import spec_of, statistics_of
from tests.crossbar.matrices import from_weight

DEVICE = load_device("synaptogen")
TILING = Tiling(rows=32, cols=16, out_features=90, in_features=150, bits=4)
STATES = torch.full((3, 2, 150, 90), 0.5, dtype=torch.float16)


def faulty(**fractions: float) -> Tensor:
    states = STATES.clone()
    apply_faults(states, Faults(**fractions), TILING, DEVICE, 1)
    return states


def test_stuck_cells_are_as_many_as_asked_for_and_in_states_that_cells_have() -> None:
    states = faulty(stuck_lrs=0.02, stuck_hrs=0.1)
    n = states.numel()
    for mask, fraction in ((states < 0.4, 0.02), (states > 0.6, 0.1)):
        assert abs(int(mask.sum()) - n * fraction) < 5 * math.sqrt(n * fraction)
    assert float(states[states < 0.4].float().mean()) == pytest.approx(0.16, abs=0.02)
    assert float(states[states > 0.6].float().std()) > 0.005
    assert states.dtype == STATES.dtype


def test_dead_lines_lie_on_one_array_each() -> None:
    conducts_nothing = zero_current_state(DEVICE).half()
    rows = faulty(dead_rows=0.1) == conducts_nothing
    assert 0 < float(rows.float().mean()) < 0.2
    for first in range(0, 90, 16):  # along a row of one array all cells are alike
        part = rows[..., first : first + 16]
        assert torch.equal(part, part[..., :1].expand_as(part))
    assert not torch.equal(rows[..., 0], rows[..., 16])
    assert not torch.equal(rows[:, 0], rows[:, 1])
    columns = faulty(dead_cols=0.1) == conducts_nothing
    for first in range(0, 150, 32):
        part = columns[..., first : first + 32, :]
        assert torch.equal(part, part[..., :1, :].expand_as(part))
    assert not torch.equal(columns[..., 0, :], columns[..., 32, :])
    assert abs(float(rows[..., ::16].float().mean()) - 0.1) < 5 * math.sqrt(0.09 / rows[..., ::16].numel())


def test_dead_cells_conduct_next_to_nothing() -> None:
    volts = torch.tensor([-0.6, -0.2, 0.01, 0.2, 0.6], dtype=torch.float64)
    dead = DEVICE.current_amperes(volts, zero_current_state(DEVICE))
    assert (dead.abs() < 0.03 * DEVICE.current_amperes(volts, torch.tensor(0.16)).abs()).all()


def matrix_of(seed: int = 0, **changes: object) -> tuple[MappedMatrix, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 60, generator=generator)
    spec = spec_of(3, 32, read_noise=None, **changes)
    return from_weight("layer", torch.randn(50, 60, generator=generator), spec, seed, statistics_of(x)), x


def test_damage_is_drawn_with_the_chip_and_costs_accuracy() -> None:
    plain, x = matrix_of()
    exact = x @ (plain.levels.float() * plain.scale[:, None]).T

    def error(matrix: MappedMatrix) -> float:
        return float((matrix(x) - exact).norm() / exact.norm())

    for changes in (
        {"faults": {"stuck_lrs": 0.02}},
        {"faults": {"dead_rows": 0.05}},
        {"retention": {"age_seconds": 1e6, "exponent": 0.02}},
    ):
        matrix, _ = matrix_of(**changes)
        again, _ = matrix_of(**changes)
        assert matrix.states is not None
        assert again.states is not None
        assert torch.equal(matrix.states, again.states)
        assert error(matrix) > 1.3 * error(plain), changes
    none, _ = matrix_of(faults={}, retention={"age_seconds": 0.0})
    assert none.states is not None
    assert plain.states is not None
    assert torch.equal(none.states, plain.states)


def test_ideal_cells_do_not_fail() -> None:
    for key in ("faults", "retention"):
        with pytest.raises(InputError, match=f"{key}: has no effect on ideal cells"):
            load_hardware({"cell": "ideal", key: {"age_seconds": 1.0} if key == "retention" else {}})
    assert load_hardware({"faults": {"stuck_lrs": 0.1}}).digital_twin().faults is None
    with pytest.raises(InputError, match=r"faults\.stuck_hrs: together with stuck_lrs, more than all cells"):
        load_hardware({"faults": {"stuck_lrs": 0.6, "stuck_hrs": 0.6}})
