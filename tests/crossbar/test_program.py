"""Which cells are SET, and what states they take."""

from __future__ import annotations

import math

import pytest
import torch

from crossbar.by_hand import spec_of
from memsim import rng
from memsim.crossbar import encode
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.program import STATE_DTYPE, mean_window, program
from memsim.crossbar.tiling import Tiling
from memsim.device import DeviceModel, state_means
from memsim.spec import Cycling, Programming

SINGLE = Programming()
CYCLED = Programming(history="zero", cycling=Cycling(rounds=1, pulses_per_round=5))
WEAKER = Programming(set_volts=-1.9)  # pulse by pulse, though nearly the same


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("config", [SINGLE, CYCLED, WEAKER], ids=["single", "cycled", "weaker"])
def test_set_cells_are_in_lrs_and_the_others_in_hrs(config: Programming, device: DeviceModel) -> None:
    """Cells of r < 0.5 are those that the level sets: orientation, polarity, planes and tiles in one."""
    levels = torch.randint(-7, 8, (5, 9), generator=generator())
    states = program(levels, Tiling(4, 2, 5, 9, 4), config, device, generator())
    assert states.shape == (3, 2, 9, 5)
    assert states.dtype == STATE_DTYPE
    assert states.isfinite().all()
    for out in range(5):
        for row in range(9):
            magnitude = [int(bit) for bit in f"{abs(int(levels[out, row])):03b}"[::-1]]
            for plane in range(3):
                positive, negative = (states[plane, polarity, row, out] < 0.5 for polarity in (0, 1))
                assert positive == (magnitude[plane] == 1 and levels[out, row] > 0)
                assert negative == (magnitude[plane] == 1 and levels[out, row] < 0)


def test_single_pulses_draw_what_full_simulation_draws(device: DeviceModel) -> None:
    levels = torch.randint(-1, 2, (100, 100), generator=generator())
    tiling = Tiling(64, 64, 100, 100, 2)
    drawn = program(levels, tiling, SINGLE, device, generator()).float()
    pulsed = program(levels, tiling, WEAKER, device, generator(2)).float()
    is_set = encode.set_mask(levels, 2)
    for cells in (is_set, ~is_set):
        n, spread = int(cells.sum()), drawn[cells].std()
        assert abs(drawn[cells].mean() - pulsed[cells].mean()) < 5 * spread * math.sqrt(2 / n)
        assert pulsed[cells].std() == pytest.approx(spread.item(), rel=0.1)  # heavy tails: no simple standard error


@pytest.mark.parametrize("history", ["stationary", "zero"])
def test_the_mean_window_is_that_of_many_cells(history: str, device: DeviceModel) -> None:
    config = Programming(history=history)
    levels = torch.ones(200, 200, dtype=torch.int8)
    states = program(levels, Tiling(128, 128, 200, 200, 2), config, device, generator()).float()
    difference = states[0, 0] - states[0, 1]
    standard_error = float(difference.std()) / 200
    assert float(difference.mean()) == pytest.approx(mean_window(config, device), abs=5 * standard_error)
    assert mean_window(config, device) == state_means(device, history)[0] - state_means(device, history)[1] < 0


def test_half_precision_states_are_close_to_the_drawn_ones(
    device: DeviceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = torch.randint(-3, 4, (20, 20), generator=generator())
    stored = program(levels, Tiling(8, 8, 20, 20, 3), SINGLE, device, generator())
    monkeypatch.setattr("memsim.crossbar.program.STATE_DTYPE", torch.float32)
    exact = program(levels, Tiling(8, 8, 20, 20, 3), SINGLE, device, generator())
    assert (stored.float() - exact).abs().max() <= 2.5e-4


def test_states_are_a_function_of_seed_and_name() -> None:
    levels = torch.randint(-3, 4, (20, 20), generator=generator())
    spec = spec_of(3)

    def states(name: str, seed: int) -> torch.Tensor:
        programmed = MappedMatrix.from_levels(name, levels, torch.ones(20), spec, seed).states
        assert programmed is not None
        return programmed

    first = states("a", 1)
    assert (states("b", 1) != first).float().mean() > 0.99
    torch.rand(5)  # no global generator
    rng.generator(1, "other", "programming")
    assert torch.equal(states("a", 1), first)
    assert (states("a", 2) != first).float().mean() > 0.99


def test_the_cells_of_a_matrix_are_independent(device: DeviceModel) -> None:
    """Correlations of states over 3,600 pairs: of the two cells of a pair, of neighbours, of planes."""
    levels = torch.full((60, 60), 3, dtype=torch.int8)
    states = program(levels, Tiling(16, 16, 60, 60, 3), SINGLE, device, generator()).double()
    pairs = [
        (states[0, 0], states[0, 1]),
        (states[0, 0], states[1, 0]),
        (states[0, 0, 1:], states[0, 0, :-1]),
        (states[0, 0, :, 1:], states[0, 0, :, :-1]),
    ]
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(a.numel())
