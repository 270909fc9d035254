"""Columns of cells whose current, or whose noise, is a sum of several products of the voltage and the state.

The current of a cell is I(U) = LLRS(U) + r f(U) + sum_k N_k(r) U^k, so that a column is one matrix product over all
terms: [f(U), U^2, U^3, ...] times [r, N_2(r), N_3(r), ...]. The noise of every read that a device has beside Johnson
and shot noise, with a variance v(r) of the conductance, adds U^2 v(r) to the variance of the current.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar.cell import MemristorCell, noise_variance_per_siemens
from memsim.crossbar.tiling import Tiling
from memsim.device import Device
from memsim.hardware import ReadNoise


def needs_products(device: Device, noise: ReadNoise | None) -> bool:
    """Whether the reads of cells of `device` with this read noise are more than one product of U and r."""
    return device.higher_powers > 0 or (noise is not None and device.has_white_noise)


@dataclass(frozen=True, eq=False)
class ProductColumns:
    """The columns of a matrix whose cells have several terms.

    Attributes:
        device: the device of the cells.
        cells: [row_tiles, terms * rows, slices * out], the terms of the positive cells minus those of the negative.
        noise: [row_tiles, (terms + 2) * rows, slices * out], the sums over both cells of 1, of the terms, and of the
            variance of their conductance.
        tiling: the layout of the matrix.
    """

    device: Device
    cells: Tensor
    noise: Tensor
    tiling: Tiling

    @classmethod
    def make(cls, device: Device, states: Tensor, tiling: Tiling, noise: ReadNoise | None) -> ProductColumns:
        """Work out the terms of cells in `states` [slices, 2, copies, in, out]; copies are averaged."""
        r = states.float()
        terms = [r, *device.higher_power_terms(r)]
        cells = [term[:, 0].mean(dim=1) - term[:, 1].mean(dim=1) for term in terms]
        white = device.white_variance(r, None if noise is None else noise.bandwidth_hz)
        sums = [own.mean(dim=2).sum(dim=1) for own in (torch.ones_like(r), *terms, white)]
        return cls(device, _tiled(cells, tiling), _tiled(sums, tiling) / tiling.copies, tiling)

    def amperes(self, volts: Tensor) -> Tensor:
        """Return the differential currents [row_tiles, n, slices * out] at `volts` [row_tiles, n, rows]."""
        return torch.bmm(torch.cat(self._functions(volts), dim=2), self.cells)

    def signals(self, volts: Tensor, factors: Tensor) -> Tensor:
        """Return the `amperes` times `factors` [row_tiles, 1, columns], which may be aligned."""
        amperes = self.amperes(volts)
        return torch.nn.functional.pad(amperes, (0, factors.shape[2] - amperes.shape[2])) * factors

    def noise_terms(self, cell: MemristorCell, volts: Tensor, noise: ReadNoise) -> Tensor:
        """Return the noise variances (A^2) of the rows [row_tiles, n, (terms + 2) * rows] for `noise_columns`."""
        per_siemens = noise_variance_per_siemens(volts, noise)
        llrs, hhrs = self.device.llrs_conductance_siemens(volts), self.device.hhrs_conductance_siemens(volts)
        higher = [volts ** (power + 1) for power in range(self.device.higher_powers)]  # N_k U^(k - 1) of I / U
        conductances = [per_siemens * own for own in (llrs, hhrs - llrs, *higher)]
        return torch.cat([*conductances, volts.square()], dim=2)

    def noise_columns(self) -> Tensor:
        """Return the share [row_tiles, (terms + 2) * rows, slices * out] of each of `noise_terms` in a column."""
        return self.noise

    def _functions(self, volts: Tensor) -> list[Tensor]:
        powers = [volts ** (power + 2) for power in range(self.device.higher_powers)]
        return [self.device.window_amperes(volts), *powers]


def _tiled(terms: list[Tensor], tiling: Tiling) -> Tensor:
    """Cut terms [slices, in, out] into [row_tiles, terms * rows, slices * out], with zeros beyond the matrix."""
    missing = tiling.row_tiles * tiling.rows - tiling.in_features
    cut = [
        torch.nn.functional.pad(term, (0, 0, 0, missing)).unflatten(1, (tiling.row_tiles, tiling.rows))
        for term in terms
    ]
    return torch.cat([own.permute(1, 2, 0, 3).flatten(2) for own in cut], dim=1).contiguous()
