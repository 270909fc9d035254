"""The programmed cells of a matrix on their arrays, and how they are driven, before any converter range is set.

Calibration and the read both start from here: `Calibrator` finds the converter ranges of `ProgrammedArrays`, and
`MappedMatrix` reads them with those ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from memsim.crossbar import encode
from memsim.crossbar.cell import IdealCell, MemristorCell
from memsim.crossbar.drive import Drive
from memsim.crossbar.input_transform import InputTransform
from memsim.crossbar.ir_drop import IrDropColumns
from memsim.crossbar.power import RowLoads
from memsim.crossbar.products import ProductColumns, needs_products
from memsim.crossbar.program import mean_window
from memsim.crossbar.read import split_planes
from memsim.crossbar.tiling import Tiling, tiling_for
from memsim.device import load_device_on
from memsim.errors import InputError
from memsim.hardware import HardwareSpec

_CHUNK_WEIGHTS = 1 << 22


@dataclass(frozen=True, eq=False)
class ProgrammedArrays:
    """The cells that hold a matrix, and the layer's resolved spec.

    Attributes:
        name: name of the matrix, for messages.
        spec: spec of the layer, with its bits set and no overrides left.
        levels: [out, in / groups], whole numbers.
        states: [slices, 2, copies, in, out], states r of the cells, those of the positive array first; None for ideal
            cells.
        groups: number of equal blocks on the diagonal of the matrix.
        ir_drop: the solved columns of each pack where the lines have a resistance. Filled when first needed; matrices
            with the same cells, lines and voltages may share the list.
        input_transform: what the inputs go through before the DAC; None where they reach it as they are.
    """

    name: str
    spec: HardwareSpec
    levels: Tensor
    states: Tensor | None
    groups: int = 1
    ir_drop: list[IrDropColumns | ProductColumns] = field(default_factory=list)
    input_transform: InputTransform | None = None

    @property
    def device(self) -> torch.device:
        """The device that the tensors are on."""
        return self.levels.device

    @property
    def tiling(self) -> Tiling:
        """The layout of the matrix on tiles."""
        return tiling_for(self.levels.shape, self.spec, self.groups)

    def difference(self) -> Tensor:
        """Return r_pos - r_neg [slices, in, out], the mean over copies; for ideal cells, the digits of the levels."""
        if self.states is not None:
            return _difference(self.states)
        levels = self.tiling.spread(self.levels)
        return encode.to_slices(levels, encode.bits_of(self.spec), self.spec.weights.cell_bits).transpose(1, 2).float()

    def significances(self) -> Tensor:
        """Return the significance [slices] of a digit of each slice."""
        bits = encode.bits_of(self.spec)
        return encode.slice_significances(bits, self.spec.weights.cell_bits).to(self.device)

    def mean_window(self) -> float:
        """Return the mean change of a cell's state from one digit to the next (negative): see `program.mean_window`."""
        spec = self.spec
        return mean_window(spec.programming, load_device_on(spec.cell, self.device), spec.weights.cell_bits)

    def programming_error(self) -> float:
        """Return ||programmed - intended|| / ||intended|| (Frobenius), where the mean step between levels is 1.

        It is 0 for ideal cells, and for a matrix of zeros, which leaves nothing to relate the error to.
        """
        if self.states is None:
            return 0.0
        weights = self.significances() / self.mean_window()
        states, outputs = self.states, self.states.shape[-1]
        programmed = torch.empty(states.shape[-2:], device=self.device)
        rows = max(1, _CHUNK_WEIGHTS // outputs)  # at a time, as memory for all may be short
        for first in range(0, len(programmed), rows):
            part = _difference(states[..., first : first + rows, :])
            programmed[first : first + rows] = torch.einsum("s,sio->io", weights, part)
        intended = self.tiling.spread(self.levels).T.float()
        size = float(intended.norm())
        return float(programmed.sub_(intended).norm()) / size if size else 0.0

    def cell(self, gain_per_ampere: float) -> IdealCell | MemristorCell:
        """Return the law of the cells; currents are multiplied by `gain_per_ampere`, which ideal cells ignore."""
        spec = self.spec
        if spec.cell == "ideal":
            return IdealCell()
        assert spec.dac is not None
        device = load_device_on(spec.cell, self.device)
        return MemristorCell(device, spec.dac.vmax_volts, gain_per_ampere, spec.weights.copies)

    def drive(self, input_range: float, gain_per_ampere: float, gives_volts: bool | None = None) -> Drive:
        """Return what drives the rows, for inputs of full scale `input_range`.

        With `gives_volts` rows carry voltages in place of signals; by default they do where lines have a resistance.
        """
        spec = self.spec
        gives_volts = self._has_own_columns if gives_volts is None else gives_volts
        return Drive.make(spec.dac, input_range, self.cell(gain_per_ampere), spec.read_noise, self.device, gives_volts)

    @property
    def _has_own_columns(self) -> bool:
        """Whether columns are more than one product of a function of the voltages and the states."""
        spec = self.spec
        if spec.cell == "ideal" or spec.wires is not None:
            return spec.wires is not None
        return needs_products(load_device_on(spec.cell, self.device), spec.read_noise)

    def ir_drop_columns(self) -> list[IrDropColumns | ProductColumns]:
        """Return the columns of each pack that are more than one product of a function of the voltages and the states.

        They have the resistance of their lines, or cells of several terms; there are none for other matrices. Raises
        InputError where lines take nearly all of the current, and where cells of several terms have lines with a
        resistance.
        """
        if not self.ir_drop and self._has_own_columns:
            spec, cell, packs = self.spec, self.cell(1.0), self.tiling.all_packs()
            assert self.states is not None
            assert isinstance(cell, MemristorCell)
            for own, _, outputs in packs:
                states = self.states[..., outputs]
                if spec.wires is None:
                    self.ir_drop.append(ProductColumns.make(cell.device, states, own, spec.read_noise))
                elif needs_products(cell.device, spec.read_noise):
                    raise InputError(
                        f"wires: the solve of line resistance takes cells whose current and noise are one product, and "
                        f"{cell.device.name} has more; set wires to none"
                    )
                else:
                    self.ir_drop.append(IrDropColumns.make(cell, states, own, spec.wires))
        return self.ir_drop

    def signal_reader(self, input_range: float, gain_per_ampere: float) -> Callable[[Tensor], Tensor]:
        """Return a function from inputs [n, in] to noiseless column signals [row_tiles, phases * n, slices, out]."""
        drive, tile_rows = self.drive(input_range, gain_per_ampere), self.spec.tile.rows
        difference, packs, ir_drop = self.difference(), self.tiling.all_packs(), self.ir_drop_columns()
        columns = [split_planes(difference[..., outputs], tile_rows) for _, _, outputs in packs]

        def read(rows: Tensor) -> Tensor:
            by_pack = []
            for index, (_, inputs, _) in enumerate(packs):
                signals = []
                for phase in drive.phases:
                    driven, _, _ = drive(phase, rows[:, inputs], tile_rows)
                    if ir_drop:
                        signals.append(ir_drop[index].amperes(driven) * gain_per_ampere)
                    else:
                        signals.append(torch.bmm(driven, columns[index].flatten(2)))
                by_pack.append(_joined(signals, dim=1).unflatten(2, columns[index].shape[2:]))
            return _joined(by_pack, dim=3)

        return read

    def largest_signals(self, gain_per_ampere: float) -> Tensor:
        """Return a bound [row_tiles, slices] of the column signals at any input, without IR drop."""
        ends = self.cell(gain_per_ampere).signal(torch.tensor([-1.0, 1.0], device=self.device))
        difference = self.difference()
        columns = [
            split_planes(difference[..., outputs], self.spec.tile.rows).abs().sum(dim=1).amax(dim=2)
            for _, _, outputs in self.tiling.all_packs()
        ]
        return torch.stack(columns).amax(dim=0) * ends.abs().max()

    def row_loads(self, input_range: float) -> RowLoads:
        """Return the cells of each row, for the power that they take; not for ideal cells."""
        assert self.states is not None
        by_pack = [
            (inputs, self.states[..., : inputs.stop - inputs.start, outputs])
            for _, inputs, outputs in self.tiling.all_packs()
        ]
        drive = self.drive(input_range, 1.0, gives_volts=True)
        device = load_device_on(self.spec.cell, self.device)
        ir_drop = [own for own in self.ir_drop_columns() if isinstance(own, IrDropColumns)]
        return RowLoads(drive, device, by_pack, ir_drop)


def _difference(states: Tensor) -> Tensor:
    """Return r_pos - r_neg [slices, in, out] of `states` [slices, 2, copies, in, out], the mean over copies."""
    difference = torch.empty(len(states), *states.shape[3:], device=states.device)
    for own, pairs in zip(difference, states, strict=True):  # one at a time, as memory for all may be short
        torch.mean(pairs[0].float() - pairs[1].float(), dim=0, out=own)
    return difference


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """Return the parts one behind the other; the only part itself, where torch.cat would copy it."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
