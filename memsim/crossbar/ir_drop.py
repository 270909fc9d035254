"""Reads with IR drop: from row voltages to the columns of a whole matrix, array by array.

Every row tile, column tile, slice, polarity and copy is an array with its own lines. Cells that hold no weight are not
selected and conduct nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar.cell import MemristorCell, noise_variance_per_siemens
from memsim.crossbar.effective import EffectiveColumns
from memsim.crossbar.line_resistance import IrDropArrays
from memsim.crossbar.tiling import ALIGNED_COLUMNS, Tiling
from memsim.hardware import ReadNoise, Wires


@dataclass(frozen=True, eq=False)
class IrDropColumns:
    """The columns of a matrix whose lines have a resistance.

    Attributes:
        arrays: the arrays, [row_tiles * col_tiles * slices * 2 * copies, rows, cols], cut to the rows and columns used.
        effective: matrices that predict the currents; None for the nodal solve.
        tiling: the layout of the matrix.
    """

    arrays: IrDropArrays
    effective: EffectiveColumns | None
    tiling: Tiling

    @classmethod
    def make(cls, cell: MemristorCell, states: Tensor, tiling: Tiling, wires: Wires) -> IrDropColumns:
        """Cut `states` [slices, 2, copies, in, out] of cells into arrays, and prepare their solve.

        Raises InputError where the lines take nearly all of the current.
        """
        cut = _cut(states.float(), tiling)
        present = _cut(torch.ones_like(states, dtype=torch.bool), tiling)
        arrays = IrDropArrays.make(cell.device, cut, wires.ohms, cell.vmax_volts, None if present.all() else present)
        return cls(arrays, EffectiveColumns.make(arrays, tiling) if wires.solve == "effective" else None, tiling)

    def amperes(self, volts: Tensor) -> Tensor:
        """Return the differential currents [row_tiles, n, slices * out], the mean over copies.

        `volts` [row_tiles, n, rows] are the voltages of the drivers.
        """
        columns = self.tiling.slices * self.tiling.out_features
        aligned = columns + -columns % ALIGNED_COLUMNS
        return self.signals(volts, volts.new_ones(len(volts), 1, aligned))[..., :columns]

    def signals(self, volts: Tensor, factors: Tensor) -> Tensor:
        """Return the `amperes` times `factors` [row_tiles, 1, columns], which may be aligned."""
        if self.effective is not None:
            return self.effective.amperes(volts[:, :, : self.arrays.states.shape[1]], factors)
        amperes = self._pairs(self.arrays.column_amperes(self._driven(volts)), sign=-1)
        return torch.nn.functional.pad(amperes, (0, factors.shape[2] - amperes.shape[2])) * factors

    def watts(self, volts: Tensor) -> Tensor:
        """Solve for the power [], float64, of all arrays at driver voltages `volts` [row_tiles, n, rows], in watts."""
        return self.arrays.driver_watts(self._driven(volts))

    def noise_columns(self) -> Tensor:
        """Return the share [row_tiles, 4 * rows, slices * out] of each of `noise_terms` that reaches a column."""
        missing = self.tiling.rows - self.arrays.states.shape[1]
        parts = (
            self._pairs(torch.nn.functional.pad(part, (0, 0, 0, missing)), sign=1) / self.tiling.copies
            for weight in self.arrays.noise_weights(*self._attenuations())
            for part in (weight, weight * self.arrays.states)
        )
        return torch.cat(list(parts), dim=1)

    def noise_terms(self, cell: MemristorCell, volts: Tensor, noise: ReadNoise) -> Tensor:
        """Return the noise variances of the rows: see `noise_terms`."""
        return noise_terms(cell, volts, noise)

    def _attenuations(self) -> tuple[Tensor, Tensor]:
        if self.effective is not None:
            return self.effective.attenuation, self.effective.received
        return self.arrays.attenuation(), self.arrays.transposed().attenuation().mT

    def _driven(self, volts: Tensor) -> Tensor:
        """Return the driver voltages [arrays, n, rows used] of each array from those of the row tiles."""
        count, rows, _ = self.arrays.states.shape
        return volts[:, :, :rows].repeat_interleave(count // self.tiling.row_tiles, dim=0)

    def _pairs(self, columns: Tensor, sign: int) -> Tensor:
        """Add positive and `sign` times negative arrays: [arrays, k, cols] -> [row_tiles, k, slices * out].

        Copies are averaged.
        """
        tiling = self.tiling
        by_array = columns.unflatten(0, (tiling.row_tiles, tiling.col_tiles, tiling.slices, 2, tiling.copies)).mean(4)
        # (row_tiles, col_tiles, slices, k, cols)
        pairs: Tensor = by_array[:, :, :, 0] + sign * by_array[:, :, :, 1]
        return pairs.permute(0, 3, 2, 1, 4).flatten(3)[..., : tiling.out_features].flatten(2)


def noise_terms(cell: MemristorCell, volts: Tensor, noise: ReadNoise) -> Tensor:
    """Return the noise variances (A^2) of the rows, [row_tiles, n, 4 * rows], at driver voltages `volts`.

    They are the Johnson noise of a cell in state 0 and its increase for each unit of r, then the same of shot noise.
    `IrDropArrays.noise_weights` has the share of each that reaches a column. `volts` are [row_tiles, n, rows].
    """
    llrs, hhrs = (g(volts) for g in (cell.device.llrs_conductance_siemens, cell.device.hhrs_conductance_siemens))
    scales = ({"shot_scale": 0.0}, {"johnson_scale": 0.0})
    per_siemens = (noise_variance_per_siemens(volts, noise.model_copy(update=scale)) for scale in scales)
    return torch.cat([part for q in per_siemens for part in (q * llrs, q * (hhrs - llrs))], dim=2)


def _cut(cells: Tensor, tiling: Tiling) -> Tensor:
    """Cut [slices, 2, copies, in, out] into [arrays, rows, cols], with zeros (False) for cells without a weight."""
    rows, cols = min(tiling.rows, tiling.in_features), min(tiling.cols, tiling.out_features)
    missing = (tiling.row_tiles * rows - tiling.in_features, tiling.col_tiles * cols - tiling.out_features)
    padded: Tensor = torch.nn.functional.pad(cells, (0, missing[1], 0, missing[0]))
    tiles: Tensor = padded.unflatten(4, (tiling.col_tiles, cols)).unflatten(3, (tiling.row_tiles, rows))
    return tiles.permute(3, 5, 0, 1, 2, 4, 6).flatten(0, 4).contiguous()
