"""Read noise against the formula in currents and against the published package."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch

from memsim.device import DeviceModel, read_noise_std_amperes
from memsim.device.noise import BOLTZMANN_JOULES_PER_KELVIN, ELEMENTARY_CHARGE_COULOMBS


def test_noise_is_that_of_the_published_read(device: DeviceModel, published: ModuleType) -> None:
    n = 100_000
    cells = published.CellArrayCPU(n)
    cells.r = np.full(n, 0.16, dtype=np.float32)
    for volts in (-0.6, 0.2):
        read = published.Iread(cells, volts, BW=1e8)
        at = torch.tensor(volts)
        std = read_noise_std_amperes(device.conductance_siemens(at, torch.tensor(0.16)), at).item()
        assert read.std() == pytest.approx(std, rel=5 / math.sqrt(2 * n))


def test_noise_is_linear_in_the_scales_and_finite_at_zero_volts() -> None:
    conductance, volts = torch.tensor(2e-4, dtype=torch.float64), torch.tensor(-0.5, dtype=torch.float64)
    johnson = 4 * BOLTZMANN_JOULES_PER_KELVIN * 350 * 1e6 * 2e-4
    shot = 2 * ELEMENTARY_CHARGE_COULOMBS * 1e-4 * 1e6

    def std(at: torch.Tensor, shot_scale: float, johnson_scale: float) -> float:
        settings = {"bandwidth_hz": 1e6, "temperature_kelvin": 350.0}
        noise = read_noise_std_amperes(conductance, at, shot_scale=shot_scale, johnson_scale=johnson_scale, **settings)
        return noise.item()

    assert std(volts, 2, 3) == pytest.approx(math.sqrt(4 * shot + 9 * johnson))
    assert std(volts, 0, 1) == pytest.approx(math.sqrt(johnson))
    assert std(0 * volts, 1, 1) == pytest.approx(math.sqrt(johnson))
    assert std(0 * volts, 1, 0) == 0


def test_published_simulation_is_a_scale_of_41_19() -> None:
    """SynaptogenML: johnson = 4 kT B |I/U|, shot = 2 e |I| B with e = exp(1) and B = 1e-8 Hz."""
    conductance, volts = torch.tensor(2e-4, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    bandwidth = 1e-8
    johnson = 4 * BOLTZMANN_JOULES_PER_KELVIN * 300 * bandwidth * 2e-4
    shot = 2 * math.e * 2e-4 * 0.6 * bandwidth
    ours = read_noise_std_amperes(conductance, volts, shot_scale=41.19, johnson_scale=1e-8)
    assert ours.item() == pytest.approx(math.sqrt(johnson + shot), rel=1e-5)
