"""Read noise of one cell: Johnson and shot noise (Hennen et al., Front. Neurosci. 16:941753, 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

BOLTZMANN_JOULES_PER_KELVIN = 1.380649e-23
ELEMENTARY_CHARGE_COULOMBS = 1.602176634e-19


def read_noise_std_amperes(
    conductance_siemens: Tensor,
    volts: Tensor,
    *,
    bandwidth_hz: float = 1.0e8,
    temperature_kelvin: float = 300.0,
    shot_scale: float = 1.0,
    johnson_scale: float = 1.0,
) -> Tensor:
    """Return the standard deviation of the current of cells with conductance G = I(U) / U at `volts`.

    The variance is ``johnson_scale^2 4 k T B |G| + shot_scale^2 2 e |G U| B``. It is a function of G and not of I,
    because the Johnson noise at 0 V does not follow from the current. The scales multiply standard deviations, and
    shapes broadcast. The published simulation (SynaptogenML, with e = 2.71828 as elementary charge and B = 1e-8 Hz)
    corresponds to shot_scale = 41.19 and johnson_scale = 1e-8 at a bandwidth of 1e8 Hz.
    """
    johnson = johnson_scale**2 * 4.0 * BOLTZMANN_JOULES_PER_KELVIN * temperature_kelvin * bandwidth_hz
    shot = shot_scale**2 * 2.0 * ELEMENTARY_CHARGE_COULOMBS * bandwidth_hz
    return torch.sqrt(conductance_siemens.abs() * (johnson + shot * volts.abs()))
