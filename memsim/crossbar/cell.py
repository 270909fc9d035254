"""The signal f(U) that a cell adds to its column, and the variance of its read noise.

A cell's current is affine in its state r, so a differential column carries sum f(U) (r_pos - r_neg). The variance of
its noise is sum q(U) [2 G_LLRS(U) + (G_HHRS(U) - G_LLRS(U)) (r_pos + r_neg)], where q(U) = 4kTB + 2eB|U|, and the
conductances G(U) = I(U) / U are finite at 0 V. Each sum is one matrix product. Currents and noise are those of Hennen
et al., Front. Neurosci. 16:941753 (2022).

Inputs u are fractions of full scale in [-1, 1], and signals are in units of (weight 1 x full-scale input).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.device import Device, read_noise_std_amperes
from memsim.hardware import ReadNoise


@dataclass(frozen=True)
class IdealCell:
    """A perfectly linear cell with exact states and no noise: a column computes sum u * weight."""

    def signal(self, u: Tensor) -> Tensor:
        """Return the signal of a unit of weight at inputs `u` of any shape, which is `u` itself."""
        return u


@dataclass(frozen=True)
class MemristorCell:
    """A cell of `device`, read at u * `vmax_volts`, whose current is multiplied by `gain_per_ampere`.

    Each cell may have several `copies`, whose mean current counts.
    """

    device: Device
    vmax_volts: float
    gain_per_ampere: float
    copies: int = 1

    def signal(self, u: Tensor) -> Tensor:
        """Return the signal of a unit of r_pos - r_neg at inputs `u` of any shape."""
        return self.device.window_amperes(u * self.vmax_volts) * self.gain_per_ampere

    @property
    def zero_current_total(self) -> Tensor:
        """The r_pos + r_neg [] of a pair without conductance at 0 V; real pairs stay below it (0.3 to 1.7 of 1.78)."""
        return 2 * zero_current_state(self.device)

    def noise_variances(self, u: Tensor, noise: ReadNoise) -> tuple[Tensor, Tensor]:
        """Return the noise variance of a pair of cells, as an affine function of its r_pos + r_neg.

        Returns (constant, slope), each of the shape of inputs `u`, in squared signal units: the variance at
        `zero_current_total`, and the increase for each unit of r_pos + r_neg below it. From there the variance of a
        column is a sum of positive terms, which loses little to rounding. The variance of a mean over copies is the
        variance of one copy, at their mean r, divided by their number.
        """
        volts = u * self.vmax_volts
        per_siemens = noise_variance_per_siemens(volts, noise) * (self.gain_per_ampere**2 / self.copies)
        llrs = self.device.llrs_conductance_siemens(volts)
        hhrs = self.device.hhrs_conductance_siemens(volts)
        slope = per_siemens * (llrs - hhrs)
        return 2 * per_siemens * llrs - self.zero_current_total * slope, slope


def noise_variance_per_siemens(volts: Tensor, noise: ReadNoise) -> Tensor:
    """Return the variance of a cell's current (A^2) for each siemens of its I / U, at `volts` of any shape."""
    config = noise.model_dump(exclude={"variance_product"})
    return read_noise_std_amperes(torch.ones_like(volts), volts, **config).square()


def zero_current_state(device: Device) -> Tensor:
    """Return the state r [], float64, of a cell without conductance at 0 V.

    At -0.6 V such a cell carries 3 % of the current of an LRS cell.
    """
    zero = torch.zeros((), dtype=torch.float64, device=device.device)
    llrs, hhrs = device.llrs_conductance_siemens(zero), device.hhrs_conductance_siemens(zero)
    return llrs / (llrs - hhrs)


class GainFit:
    """The gain of least squares from actual to wanted products, fitted to a stream of them."""

    def __init__(self) -> None:
        self._product = self._square = 0.0
        self.is_empty = True

    def add(self, wanted: Tensor, products: Tensor, weights: Tensor) -> None:
        """Count `products` and the `wanted` ones `weights` times each; all of one shape, float64."""
        self.is_empty = False
        self._product += float((weights * wanted * products).sum())
        self._square += float((weights * products.square()).sum())

    @property
    def gain(self) -> float | None:
        """The gain of the products added; None where all of them are 0."""
        return self._product / self._square if self._square else None
