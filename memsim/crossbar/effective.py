"""Arrays with line resistance as matrices, which predict the column currents that `IrDropArrays` solves for.

With linear cells a column current would be linear in the driver voltages, and one matrix would give it. Real cells are
slightly non-linear. A column current is therefore the sum of the currents p_ij(V_i) that each row drives alone, and of
the interaction of rows that are driven together. Rows interact on bit lines: with phi_ij the potential to which all
rows raise bit line j at row i, and phi_ij^own the potential to which row i alone raises it,

    I_j(V) = sum_i p_ij(V_i) - sum_i h_ij n'_ij(a_ij V_i) (phi_ij - phi_ij^own)

to first order in phi and in the non-linear part of a cell's current, n(U) = I(U) - I'(0) U. The attenuations a of a
voltage and h of a current are those of `IrDropArrays.attenuation`. The p_ij are solved for row by row and kept as
polynomials. phi is smooth along a line, so the first mode of its ladder K is enough: psi_i ~ sin(i pi / (2 rows + 1)),
with eigenvalue mu. Its amplitude is taken as linear in the driver voltages,

    phi_ij = psi_i sum_k beta_kj V_k,        beta_kj = w mu sum_l psi_l I_lj(1 V on row k, cells linearised)

A read is then three matrix products. It is exact with linear cells and with lines of 0 ohm, and exact up to the
polynomials (1e-4) with a single row driven. The approximation is derived here; its errors are in `EffectiveArrays`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar.line_resistance import IrDropArrays, cell_amperes


@dataclass(frozen=True, eq=False)
class EffectiveArrays:
    """Matrices that act on powers of the driver voltages u = V / vmax, in place of the solve of `IrDropArrays`.

    Attributes:
        alone: [tiles, degree * rows, cols], the p_ij in amperes: matrices for u, u^2, ..., one below the other.
        bit_lines: [tiles, rows, cols], the beta in volts.
        slopes: [tiles, (degree - 1) * rows, cols], -psi h n' in siemens, for u, u^2, ... likewise.
        vmax_volts: the full-scale voltage.

    The table has the errors of a differential column (root mean square / largest of 64 x 128 currents, in per cent of
    the largest current) on 128 x 128 cells of 3-bit Gaussian weights. Inputs of both signs are Gaussian (full scale at
    3.7 sigma) or uniform; the worst case drives all rows alike.

    ====  =======  ============  ============  ============
    vmax  segment  Gaussian      uniform       all alike
    ====  =======  ============  ============  ============
    0.4   0.3 ohm  0.002 / 0.02  0.006 / 0.04  0.05 / 0.4
    0.4   1 ohm    0.007 / 0.04  0.014 / 0.09  0.15 / 1.1
    0.4   3 ohm    0.011 / 0.11  0.028 / 0.30  0.20 / 2.0
    0.6   0.3 ohm  0.004 / 0.03  0.010 / 0.07  0.10 / 0.8
    0.6   1 ohm    0.011 / 0.06  0.031 / 0.26  0.30 / 2.3
    0.6   3 ohm    0.015 / 0.15  0.044 / 0.51  0.40 / 4.5
    ====  =======  ============  ============  ============
    """

    alone: Tensor
    bit_lines: Tensor
    slopes: Tensor
    vmax_volts: float

    @classmethod
    def make(cls, arrays: IrDropArrays) -> EffectiveArrays:
        """Solve for every row alone, which takes as long as reading about 9 inputs for each row."""
        rows = arrays.states.shape[1]
        angle = math.pi / (2 * rows + 1)
        mode = torch.sin(torch.arange(1, rows + 1).to(arrays.states) * angle) * (2 / math.sqrt(2 * rows + 1))
        eigenvalue = 1 / (2 - 2 * math.cos(angle))
        bit_lines = _in_mode(arrays, mode) * (arrays.segment_ohms * eigenvalue * arrays.vmax_volts)
        slopes = _slopes(arrays) * -mode[:, None]
        alone = _alone(arrays)
        # `alone` has the effect of a row on itself, so the interaction must leave it out
        alone[:, 1:] -= bit_lines[:, None] * slopes
        return cls(alone.flatten(1, 2), bit_lines, slopes.flatten(1, 2), arrays.vmax_volts)

    def column_amperes(self, volts: Tensor) -> Tensor:
        """Return column currents [tiles, n, cols] in amperes at driver voltages `volts` [tiles, n, rows]."""
        rows = self.bit_lines.shape[1]
        u = volts / self.vmax_volts
        powers = u[:, :, None].expand(-1, -1, self.alone.shape[1] // rows, -1).cumprod(2).flatten(2)
        interaction = torch.bmm(u, self.bit_lines) * torch.bmm(powers[:, :, :-rows], self.slopes)
        return torch.baddbmm(interaction, powers, self.alone)


def _alone(arrays: IrDropArrays) -> Tensor:
    """Return the polynomials [tiles, degree, rows, cols] of p_ij in u, lowest power first, through solved points."""
    tiles, rows, _ = arrays.states.shape
    degree = len(arrays.envelopes)
    points = torch.linspace(-1, 1, degree + 1, dtype=torch.float64)
    points = points[points.abs() > 1e-9]
    from_points = torch.linalg.pinv(points[:, None] ** torch.arange(1, degree + 1)).to(arrays.states)
    row_by_row = torch.eye(rows).to(arrays.states)
    volts = (points.to(arrays.states)[:, None, None] * arrays.vmax_volts * row_by_row).flatten(0, 1)
    amperes = arrays.column_amperes(volts.expand(tiles, -1, -1)).unflatten(1, (len(points), rows))
    return torch.einsum("dp,tpij->tdij", from_points, amperes)


def _in_mode(arrays: IrDropArrays, mode: Tensor) -> Tensor:
    """Return the column currents [tiles, rows, cols], rows weighted by `mode`, with 1 V on one row at a time."""
    weighted = torch.empty_like(arrays.states)
    one_volt = torch.eye(len(mode)).to(mode).expand(len(weighted), -1, -1)
    for part, frames, cells, across in arrays.linearised().solutions(one_volt):
        weighted[part, frames] = torch.einsum("k,tnkj->tnj", mode, cell_amperes(cells, across))
    return weighted


def _slopes(arrays: IrDropArrays) -> Tensor:
    """Return the polynomials [tiles, degree - 1, rows, cols] of h n'(a V) in u, lowest power first."""
    volts = arrays.attenuation() * arrays.vmax_volts
    received = arrays.transposed().attenuation().mT
    by_power = arrays.cells(slice(None))[:, :, 0].flip(0).transpose(0, 1)  # (tiles, degree, rows, cols)
    powers = torch.arange(1, by_power.shape[1]).to(volts)[:, None, None]
    return by_power[:, 1:] * (powers + 1) * volts[:, None] ** powers * received[:, None]
