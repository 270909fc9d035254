"""The outcomes of programming, which error feedback reads back row by row.

A programmer writes the cells of one input, reads them, and lets the inputs still to be written make up for what they
became. The draws of a cell are its own: what it becomes at a digit depends on no other cell and on no order. All cells
are therefore programmed once at every digit beforehand, and the feedback looks up the outcome of a level after it has
chosen that level by its target alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar import encode
from memsim.crossbar.program import mean_window, outcome_states
from memsim.crossbar.tiling import tiling_for
from memsim.device import load_device_on
from memsim.hardware import HardwareSpec


@dataclass(frozen=True, eq=False)
class CellOutcomes:
    """The states that the cells of each weight take when they are programmed.

    Attributes:
        states: [digits, slices, 2, copies, in / groups, out], float16: the states right after programming, at each
            digit; those of the positive array first.
        steps: [slices], the levels that a change of the state by 1 stands for, where the mean step between digits is 1.
        cell_bits: the bits of a cell.
    """

    states: Tensor
    steps: Tensor
    cell_bits: int

    def outputs(self, first: int, last: int) -> CellOutcomes:
        """Return the outcomes of the outputs `first` to `last` - 1."""
        return CellOutcomes(self.states[..., first:last], self.steps, self.cell_bits)

    def inputs(self, first: int, last: int) -> CellOutcomes:
        """Return the outcomes of the inputs `first` to `last` - 1 of each group."""
        return CellOutcomes(self.states[..., first:last, :], self.steps, self.cell_bits)

    def parts(self) -> Tensor:
        """Return the part of a level [out, in / groups, 2, slices, digits], float32, that a cell is at each digit.

        It is the mean over copies. A level is the sum over its positive cells less that over its negative ones.
        """
        means = self.states.float().mean(dim=3) * self.steps.float().view(-1, 1, 1, 1)
        return means.permute(4, 3, 2, 1, 0).contiguous()  # from [digits, slices, 2, in, out]

    def became(self, levels: Tensor) -> Tensor:
        """Return what `levels` [out, in / groups] became, [out, in / groups], float64, in units of the level."""
        levels, parts = levels.long(), self.parts().double()
        slices, digits = parts.shape[3:]
        shifts = self.cell_bits * torch.arange(slices)

        def array(polarity: int) -> Tensor:
            magnitude = (-levels if polarity else levels).clamp(min=0)
            held = (magnitude[..., None] >> shifts) & (digits - 1)
            return parts[:, :, polarity].gather(3, held[..., None])[..., 0].sum(dim=2)

        return array(0) - array(1)


def cell_outcomes(
    name: str, shape: Sequence[int], spec: HardwareSpec, seed: int, groups: int = 1, on: torch.device | None = None
) -> CellOutcomes | None:
    """Return what the cells of a matrix of `shape` (out, in / groups) become, on the chip of `seed`; None if ideal.

    `spec` is the layer's resolved spec. Cells are programmed on the device `on` (default: a CPU). Raises InputError as
    `memsim.crossbar.program.program` does.
    """
    if spec.cell == "ideal":
        return None
    on = on or torch.device("cpu")
    states = outcome_states(name, shape, spec, seed, groups, on).cpu()
    tiling = tiling_for(shape, spec, groups)
    if tiling.blocks_per_pack > 1:  # the cells of an output's own block, on the diagonal of its pack
        output = torch.arange(tiling.out_features)
        place = output // (tiling.out_features // groups) % tiling.blocks_per_pack
        inputs = place * tiling.block_inputs + torch.arange(tiling.block_inputs)[:, None]  # [in / groups, out]
        states = states.gather(4, inputs.expand(*states.shape[:4], -1, -1))
    bits, cell_bits = tiling.bits, tiling.cell_bits
    window = mean_window(spec.programming, load_device_on(spec.cell, on), cell_bits)
    return CellOutcomes(states, encode.slice_significances(bits, cell_bits) / window, cell_bits)
