"""What a column of cells does to a row voltage: the signal f(U), and the variance of its read noise.

A cell's current is affine in its state r, so a differential column carries sum f(U) (r_pos - r_neg), and its noise has
the variance sum q(U) [2 G_LLRS(U) + (G_HHRS(U) - G_LLRS(U)) (r_pos + r_neg)] with q(U) = 4kTB + 2eB|U| and conductances
G(U) = I(U) / U that are finite at 0 V. Each is one matrix product (Hennen et al., 2022, for currents and noise).

Inputs u are fractions of full scale in [-1, 1]; signals come out in units of (weight 1 x full-scale input).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from memsim.device import DeviceModel, read_noise_std_amperes
from memsim.spec import ReadNoise


class CellLaw(Protocol):
    """How row voltages act on the columns of a cell type."""

    def signal(self, u: Tensor) -> Tensor:
        """What a unit of r_pos - r_neg (or, for ideal cells, of weight) adds to a column at input `u`; any shape."""
        ...


@dataclass(frozen=True)
class IdealCell:
    """A perfectly linear cell with two exact states and no noise: a column computes sum u * weight."""

    def signal(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True)
class MemristorCell:
    """Cells of `device`, read at u * `vmax_volts`; currents are multiplied by `gain_per_ampere`.

    In place of a cell there may be `copies` of it, of which the mean counts.
    """

    device: DeviceModel
    vmax_volts: float
    gain_per_ampere: float
    copies: int = 1

    def signal(self, u: Tensor) -> Tensor:
        return self.device.window_amperes(u * self.vmax_volts) * self.gain_per_ampere

    @property
    def dark_total(self) -> Tensor:
        """[] r_pos + r_neg of a pair that conducts nothing at 0 V; real pairs stay below it (0.3 to 1.7 of 1.78)."""
        return 2 * dark_state(self.device)

    def noise_variances(self, u: Tensor, noise: ReadNoise) -> tuple[Tensor, Tensor]:
        """(variance of a pair at `dark_total`, what each unit of r_pos + r_neg below it adds), as `u`, in signal units.

        The variance of a mean over copies is that of one, at their mean r, over their number. Counted from there, the
        variance of a column is a sum of positive terms: little is lost to rounding.
        """
        volts = u * self.vmax_volts
        per_siemens = noise_variance_per_siemens(volts, noise) * (self.gain_per_ampere**2 / self.copies)
        llrs = self.device.llrs_conductance_siemens(volts)
        hhrs = self.device.hhrs_conductance_siemens(volts)
        slope = per_siemens * (llrs - hhrs)
        return 2 * per_siemens * llrs - self.dark_total * slope, slope


def noise_variance_per_siemens(volts: Tensor, noise: ReadNoise) -> Tensor:
    """What each siemens of a cell's I / U adds to the variance of its current (A^2), at `volts` of any shape."""
    config = noise.model_dump(exclude={"variance_product"})
    return read_noise_std_amperes(torch.ones_like(volts), volts, **config).square()


def dark_state(device: DeviceModel) -> Tensor:
    """[] the r of a cell that conducts nothing at 0 V, and at -0.6 V 3 % of an LRS cell; float64."""
    zero = torch.zeros((), dtype=torch.float64, device=device.device)
    llrs, hhrs = device.llrs_conductance_siemens(zero), device.hhrs_conductance_siemens(zero)
    return llrs / (llrs - hhrs)


class GainFit:
    """Least squares, from a stream, of the gain that brings products closest to what they should be."""

    def __init__(self) -> None:
        self._product = self._square = 0.0
        self.is_empty = True

    def add(self, inputs: Tensor, products: Tensor, weights: Tensor) -> None:
        """Count `products` of `inputs`, `weights` times each; of one shape, float64."""
        self.is_empty = False
        self._product += float((weights * inputs * products).sum())
        self._square += float((weights * products.square()).sum())

    @property
    def gain(self) -> float | None:
        """None where all products are 0."""
        return self._product / self._square if self._square else None
