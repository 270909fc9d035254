"""Wired arrays as matrices: the column currents that `WiredArrays` solves for, foreseen when an array is programmed.

Were cells linear, a column current would be linear in the drivers, and one matrix would hold it. They curve a little,
so a column current is what every row drives alone, p_ij(V_i), and what rows that are driven together change. They meet
on bit lines: with phi_ij the potential that all rows raise bit line j to at row i, and phi_ij^own that of row i alone,

    I_j(V) = sum_i p_ij(V_i) - sum_i h_ij n'_ij(a_ij V_i) (phi_ij - phi_ij^own)

to first order in phi and in the curved part of a cell's current, n(U) = I(U) - I'(0) U, where a and h are the parts of
a voltage and of a current that `WiredArrays.attenuation` gives. The p_ij are solved for, row by row, and kept as
polynomials. phi is smooth along a line: of the modes of its ladder K the first, psi_i ~ sin(i pi / (2 rows + 1)) with
eigenvalue mu, is enough, and how far it is raised is taken as linear,

    phi_ij = psi_i sum_k beta_kj V_k,        beta_kj = w mu sum_l psi_l I_lj(1 V on row k, cells linearised)

So a read is three matrix products. It is exact with linear cells, with wires of 0 ohm and, but for the polynomials (to
1e-4), with a single row driven.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar.line_resistance import WiredArrays, cell_amperes


@dataclass(frozen=True, eq=False)
class EffectiveArrays:
    """Stands in for `WiredArrays`, as matrices that act on powers of the driver voltages u = V / vmax.

    `alone` [tiles, degree * rows, cols]: the p_ij in amperes, the matrices of u, u^2, ... one below the other;
    `bit_lines` [tiles, rows, cols]: the beta in volts; `slopes` [tiles, (degree - 1) * rows, cols]: likewise of u, u^2,
    ..., -psi h n' in siemens.

    What it misses of a differential column (root mean square / largest of 64 x 128 currents, per cent of the largest
    current), 128 x 128 cells of 3-bit Gaussian weights. Inputs of both signs are Gaussian, full scale at 3.7 sigma, or
    uniform; the worst case drives all rows alike.

    ====  =======  ============  ============  ============
    vmax  wires    Gaussian      uniform       all alike
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
    def make(cls, arrays: WiredArrays) -> EffectiveArrays:
        """Drives every row on its own: the work of reading some 9 inputs per row."""
        rows = arrays.states.shape[1]
        angle = math.pi / (2 * rows + 1)
        mode = torch.sin(torch.arange(1, rows + 1).to(arrays.states) * angle) * (2 / math.sqrt(2 * rows + 1))
        eigenvalue = 1 / (2 - 2 * math.cos(angle))
        bit_lines = _in_mode(arrays, mode) * (arrays.wire_ohms * eigenvalue * arrays.vmax_volts)
        slopes = _slopes(arrays) * -mode[:, None]
        alone = _alone(arrays)
        # what a row does to itself is in `alone` already: leave it out of the interaction
        alone[:, 1:] -= bit_lines[:, None] * slopes
        return cls(alone.flatten(1, 2), bit_lines, slopes.flatten(1, 2), arrays.vmax_volts)

    def column_amperes(self, volts: Tensor) -> Tensor:
        """Column currents [tiles, n, cols] at the driver voltages `volts` [tiles, n, rows]."""
        rows = self.bit_lines.shape[1]
        u = volts / self.vmax_volts
        powers = u[:, :, None].expand(-1, -1, self.alone.shape[1] // rows, -1).cumprod(2).flatten(2)
        interaction = torch.bmm(u, self.bit_lines) * torch.bmm(powers[:, :, :-rows], self.slopes)
        return torch.baddbmm(interaction, powers, self.alone)


def _alone(arrays: WiredArrays) -> Tensor:
    """[tiles, degree, rows, cols]: the polynomials of p_ij in u, lowest power first, through as many solved points."""
    tiles, rows, _ = arrays.states.shape
    degree = len(arrays.envelopes)
    points = torch.linspace(-1, 1, degree + 1, dtype=torch.float64)
    points = points[points.abs() > 1e-9]
    from_points = torch.linalg.pinv(points[:, None] ** torch.arange(1, degree + 1)).to(arrays.states)
    row_by_row = torch.eye(rows).to(arrays.states)
    volts = (points.to(arrays.states)[:, None, None] * arrays.vmax_volts * row_by_row).flatten(0, 1)
    amperes = arrays.column_amperes(volts.expand(tiles, -1, -1)).unflatten(1, (len(points), rows))
    return torch.einsum("dp,tpij->tdij", from_points, amperes)


def _in_mode(arrays: WiredArrays, mode: Tensor) -> Tensor:
    """[tiles, rows, cols]: column currents in siemens, rows weighted by `mode`, with 1 V on one row at a time."""
    weighted = torch.empty_like(arrays.states)
    one_volt = torch.eye(len(mode)).to(mode).expand(len(weighted), -1, -1)
    for part, frames, cells, across in arrays.linearised().solutions(one_volt):
        weighted[part, frames] = torch.einsum("k,tnkj->tnj", mode, cell_amperes(cells, across))
    return weighted


def _slopes(arrays: WiredArrays) -> Tensor:
    """[tiles, degree - 1, rows, cols]: the polynomials h n'(a V) in u, lowest power first."""
    volts = arrays.attenuation() * arrays.vmax_volts
    received = arrays.transposed().attenuation().mT
    by_power = arrays.cells(slice(None))[:, :, 0].flip(0).transpose(0, 1)  # (tiles, degree, rows, cols)
    powers = torch.arange(1, by_power.shape[1]).to(volts)[:, None, None]
    return by_power[:, 1:] * (powers + 1) * volts[:, None] ** powers * received[:, None]
