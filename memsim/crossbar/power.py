"""The power of a matrix's cells during a read: the sum of U I over all cells.

A cell's current is affine in its state r. The n cells of a row at voltage U therefore take U [n LLRS(U) + f(U) sum r],
with f = HHRS - LLRS, which needs the sum of their states only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar.drive import Drive
from memsim.crossbar.ir_drop import IrDropColumns
from memsim.device import Device


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


class RowLoads:
    """The cells on each row of a matrix, by pack."""

    def __init__(
        self,
        drive: Drive,
        device: Device,
        by_pack: Iterable[tuple[slice, Tensor]],
        ir_drop: Sequence[IrDropColumns] = (),
    ) -> None:
        """Add up the states [slices, 2, copies, rows of a pack, outputs] of each pack, given with its inputs.

        `drive` gives volts. `ir_drop` has the columns of each pack where lines have a resistance.
        """
        self._drive, self._device, self._ir_drop = drive, device, ir_drop
        self._packs = [
            (inputs, states.numel() // states.shape[3], states.sum(dim=(0, 1, 2, 4), dtype=torch.float64))
            for inputs, states in by_pack
        ]

    def watts(self, x: Tensor) -> Tensor:
        """Return the power [], float64, of the arrays in watts, summed over inputs [n, in] and their phases.

        Read noise adds nothing in the mean. IR drop reduces the power by the factor solved for IR_DROP_VECTORS of the
        inputs, which are evenly spaced.
        """
        total = self._without_ir_drop(x)
        if not self._ir_drop or not total:
            return total
        some = x[:: -(-len(x) // IR_DROP_VECTORS)]
        return total * self._with_ir_drop(some) / self._without_ir_drop(some)

    def _without_ir_drop(self, x: Tensor) -> Tensor:
        total = x.new_zeros((), dtype=torch.float64)
        for part, cells, states in self._packs:
            rows = x[:, part]
            for phase in self._drive.phases:
                volts = self._drive(phase, rows, rows.shape[1])[0][0]
                most = (volts * self._device.llrs_current_amperes(volts)).sum(dtype=torch.float64)
                by_state = (volts * self._device.window_amperes(volts)).sum(dim=0, dtype=torch.float64)
                total += cells * most + by_state @ states
        return total

    def _with_ir_drop(self, x: Tensor) -> Tensor:
        total = x.new_zeros((), dtype=torch.float64)
        for (part, _, _), ir_drop in zip(self._packs, self._ir_drop, strict=True):
            for phase in self._drive.phases:
                total += ir_drop.watts(self._drive(phase, x[:, part], ir_drop.tiling.rows)[0])
        return total
