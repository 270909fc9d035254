"""The power of a matrix's cells during a read: the sum of U I over all cells.

A cell's current is affine in its state r. The n cells of a row at voltage U therefore take U [n LLRS(U) + f(U) sum r],
with f = HHRS - LLRS, which needs the sum of their states only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar.drive import Drive
from memsim.crossbar.ir_drop import IrDropColumns
from memsim.device import DeviceModel


@dataclass
class Work:
    """The reads of a matrix so far.

    Attributes:
        vectors: the number of input vectors.
        cell_watts: the power of the cells, summed over vectors and phases; an energy when multiplied by the length of a
            pulse.
    """

    vectors: int = 0
    cell_watts: Tensor | float = 0.0


IR_DROP_VECTORS = 2
"""The number of inputs of a read whose power is solved with IR drop, to estimate its effect on the power of all."""


@dataclass(frozen=True)
class RowLoads:
    """The cells on each row of a matrix, by pack.

    Attributes:
        drive: the drive of the rows, which gives volts.
        device: the device model of the cells.
        inputs: the inputs of each pack.
        cells: the number of cells with a weight on a row of each pack.
        states: [rows], float64, the sum of the states r on each row of each pack.
        ir_drop: the columns of each pack where lines have a resistance; else empty.
    """

    drive: Drive
    device: DeviceModel
    inputs: tuple[slice, ...]
    cells: tuple[int, ...]
    states: tuple[Tensor, ...]
    ir_drop: tuple[IrDropColumns, ...] = ()

    @classmethod
    def make(
        cls,
        drive: Drive,
        device: DeviceModel,
        by_pack: list[tuple[slice, Tensor]],
        ir_drop: tuple[IrDropColumns, ...] = (),
    ) -> RowLoads:
        """Add up the states [slices, 2, copies, rows of a pack, outputs] of each pack, given with its inputs."""
        inputs, states = zip(*by_pack, strict=True)
        rows = [own.shape[3] for own in states]
        cells = tuple(own.numel() // count for own, count in zip(states, rows, strict=True))
        sums = tuple(own.sum(dim=(0, 1, 2, 4), dtype=torch.float64) for own in states)
        return cls(drive, device, inputs, cells, sums, ir_drop)

    def watts(self, x: Tensor) -> Tensor:
        """Return the power [], float64, of the arrays in watts, summed over inputs [n, in] and their phases.

        Read noise adds nothing in the mean. IR drop reduces the power by the factor solved for IR_DROP_VECTORS of the
        inputs, which are evenly spaced.
        """
        total = self._without_ir_drop(x)
        if not self.ir_drop or not total:
            return total
        some = x[:: -(-len(x) // IR_DROP_VECTORS)]
        return total * self._with_ir_drop(some) / self._without_ir_drop(some)

    def _without_ir_drop(self, x: Tensor) -> Tensor:
        total = x.new_zeros((), dtype=torch.float64)
        for part, cells, states in zip(self.inputs, self.cells, self.states, strict=True):
            rows = x[:, part]
            for phase in self.drive.phases:
                volts = self.drive(phase, rows, rows.shape[1])[0][0]
                most = (volts * self.device.llrs_current_amperes(volts)).sum(dtype=torch.float64)
                by_state = (volts * self.device.window_amperes(volts)).sum(dim=0, dtype=torch.float64)
                total += cells * most + by_state @ states
        return total

    def _with_ir_drop(self, x: Tensor) -> Tensor:
        total = x.new_zeros((), dtype=torch.float64)
        for part, ir_drop in zip(self.inputs, self.ir_drop, strict=True):
            for phase in self.drive.phases:
                total += ir_drop.watts(self.drive(phase, x[:, part], ir_drop.tiling.rows)[0])
        return total
