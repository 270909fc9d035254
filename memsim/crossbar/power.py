"""The power that the cells of a matrix take while they are read: the sum of U I over all of them.

A cell's current is affine in its state r, so the cells of a row at the voltage U take U [n LLRS(U) + f(U) sum r], with
n of them and f = HHRS - LLRS: it takes their sum, not each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar.drive import Drive
from memsim.crossbar.ir_drop import WiredColumns
from memsim.device import DeviceModel


@dataclass
class Work:
    """What was read of a matrix: how many input vectors, and the power of its cells summed over them and their phases.

    Times the length of a pulse, the latter is an energy.
    """

    vectors: int = 0
    cell_watts: Tensor | float = 0.0


WIRED_VECTORS = 2
"""How many of the inputs of a read are solved for between resistive wires, to learn what these take from its power."""


@dataclass(frozen=True)
class RowLoads:
    """The cells of each row of a matrix, by the pack that the row belongs to.

    `drive` gives volts. Of each pack: `inputs`, its part of the input; `cells` that hold weights on a row; `states`
    [rows], the sum of their r, float64; `wired`, its arrays between wires, where these have a resistance.
    """

    drive: Drive
    device: DeviceModel
    inputs: tuple[slice, ...]
    cells: tuple[int, ...]
    states: tuple[Tensor, ...]
    wired: tuple[WiredColumns, ...] = ()

    @classmethod
    def make(
        cls,
        drive: Drive,
        device: DeviceModel,
        by_pack: list[tuple[slice, Tensor]],
        wired: tuple[WiredColumns, ...] = (),
    ) -> RowLoads:
        """From the inputs and the states [slices, 2, copies, rows of a pack, outputs] of each pack."""
        inputs, states = zip(*by_pack, strict=True)
        rows = [own.shape[3] for own in states]
        cells = tuple(own.numel() // count for own, count in zip(states, rows, strict=True))
        sums = tuple(own.sum(dim=(0, 1, 2, 4), dtype=torch.float64) for own in states)
        return cls(drive, device, inputs, cells, sums, wired)

    def watts(self, x: Tensor) -> Tensor:
        """[], float64: the power that the arrays take, summed over inputs [n, in] and the phases of reading them.

        Read noise adds nothing in the mean. Resistive wires take from the power in the proportion that they do for
        WIRED_VECTORS of the inputs, evenly taken.
        """
        total = self._without_wires(x)
        if not self.wired or not total:
            return total
        some = x[:: -(-len(x) // WIRED_VECTORS)]
        return total * self._through_wires(some) / self._without_wires(some)

    def _without_wires(self, x: Tensor) -> Tensor:
        total = x.new_zeros((), dtype=torch.float64)
        for part, cells, states in zip(self.inputs, self.cells, self.states, strict=True):
            rows = x[:, part]
            for phase in self.drive.phases:
                volts = self.drive(phase, rows, rows.shape[1])[0][0]
                most = (volts * self.device.llrs_current_amperes(volts)).sum(dtype=torch.float64)
                by_state = (volts * self.device.window_amperes(volts)).sum(dim=0, dtype=torch.float64)
                total += cells * most + by_state @ states
        return total

    def _through_wires(self, x: Tensor) -> Tensor:
        total = x.new_zeros((), dtype=torch.float64)
        for part, wired in zip(self.inputs, self.wired, strict=True):
            for phase in self.drive.phases:
                total += wired.watts(self.drive(phase, x[:, part], wired.tiling.rows)[0])
        return total
