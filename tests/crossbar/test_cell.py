"""The voltage law of a column: signal, noise variance and gain."""

from __future__ import annotations

import pytest
import torch

from memsim.crossbar.cell import GainFit, IdealCell, MemristorCell
from memsim.device import DeviceModel, read_noise_std_amperes, state_means
from memsim.hardware import ReadNoise

U = torch.linspace(-1, 1, 41, dtype=torch.float64)


def test_an_ideal_cell_is_linear() -> None:
    assert torch.equal(IdealCell().signal(U), U)


def test_the_signal_is_the_difference_of_two_currents(device: DeviceModel) -> None:
    cell = MemristorCell(device, 0.6, 8000.0)
    positive, negative = torch.tensor(0.17, dtype=torch.float64), torch.tensor(0.83, dtype=torch.float64)
    difference = device.current_amperes(0.6 * U, positive) - device.current_amperes(0.6 * U, negative)
    torch.testing.assert_close(cell.signal(U) * (positive - negative), 8000 * difference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("vmax", [0.2, 0.6])
@pytest.mark.parametrize("noise", [ReadNoise(), ReadNoise(shot_scale=41.19, johnson_scale=0.0)])
def test_the_variance_of_a_pair_is_that_of_its_two_cells(noise: ReadNoise, vmax: float, device: DeviceModel) -> None:
    cell = MemristorCell(device, vmax, 8000.0)
    constant, slope = cell.noise_variances(U, noise)
    for pair in ((0.16, 0.84), (0.84, 0.16), (0.8, 0.83), (0.15, 0.17)):
        r = torch.tensor(pair, dtype=torch.float64)[:, None]
        conductance = device.conductance_siemens(vmax * U, r)
        assert (conductance > 0).all()
        std = 8000 * read_noise_std_amperes(conductance, vmax * U, **noise.model_dump(exclude={"variance_product"}))
        variance = constant + (cell.zero_current_total - sum(pair)) * slope
        torch.testing.assert_close(variance, std.square().sum(0), rtol=1e-9, atol=1e-18)


def test_johnson_noise_is_left_at_zero_volts(device: DeviceModel) -> None:
    cell = MemristorCell(device, 0.6, 8000.0)
    zero = torch.zeros(1, dtype=torch.float64)
    constant, slope = cell.noise_variances(zero, ReadNoise())
    expected = 8000**2 * 4 * 1.380649e-23 * 300 * 1e8 * float(device.conductance_siemens(zero, 0.16 + zero)) * 2
    assert float(constant + (cell.zero_current_total - 0.32) * slope) == pytest.approx(expected, rel=1e-9)
    assert float(constant) == pytest.approx(0, abs=1e-12 * float(slope))
    constant, slope = cell.noise_variances(zero, ReadNoise(johnson_scale=0.0))
    assert float(constant) == float(slope) == 0


def test_the_gain_is_the_least_squares_one(device: DeviceModel) -> None:
    lrs, hrs = state_means(device)
    u, weights = U, torch.linspace(1, 3, 41, dtype=torch.float64)
    amperes = device.current_amperes(0.5 * u, torch.tensor(lrs)) - device.current_amperes(0.5 * u, torch.tensor(hrs))
    fit = GainFit()
    assert fit.is_empty
    assert fit.gain is None
    for part in (slice(0, 7), slice(7, None)):
        fit.add(u[part], amperes[part], weights[part])
    gain = fit.gain
    assert not fit.is_empty
    assert gain is not None

    def error(g: float) -> float:
        return float((weights * (g * amperes - u).square()).sum())

    assert gain > 0
    assert error(gain) < min(error(0.999 * gain), error(1.001 * gain))


def test_the_published_gain_of_8020(device: DeviceModel) -> None:
    """The mean of U / (I_LRS - I_HRS) over 0.1 to 0.6 V, divided by 0.6 (the code of arXiv 2505.24721)."""
    volts = torch.linspace(0.1, 0.6, 501, dtype=torch.float64)
    lrs, hrs = state_means(device, "zero")
    difference = device.window_amperes(volts) * (lrs - hrs)
    assert float((volts / difference).mean() / 0.6) == pytest.approx(8020, rel=0.02)
