"""From inputs to what the rows contribute to a column: the DAC and the cells' voltage law.

An input is read in one or more phases. Each drives the rows with voltages of its own, its columns are converted on
their own, and the results are added with the phase's worth: positive and negative inputs one after the other
(`polarity: two_phase`), or a few bits of the input at a time (`slice_bits`). A signed DAC with all its bits has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from memsim.crossbar import compiled, convert, elementwise
from memsim.crossbar.cell import IdealCell, MemristorCell
from memsim.crossbar.tiling import split_rows
from memsim.spec import Dac, ReadNoise

Rows = tuple[Tensor, Tensor | None, Tensor | int]
"""Signals, noise terms and how many inputs were clipped: see `elementwise.look_up`."""


@dataclass(frozen=True)
class Phase:
    """One reading of the arrays for an input.

    `worth` is what its result counts; `sign` the sign of the inputs that it drives, 0 for both. `tables` hold by DAC
    code the signal and, for noise, the two variances of `MemristorCell.noise_variances`; None where there are no codes.
    """

    worth: float
    sign: int
    tables: tuple[Tensor, ...] | None


@dataclass(frozen=True)
class Drive:
    """What drives the rows of a matrix; `input_range` is the input that drives full scale."""

    dac: Dac | None
    input_range: float
    cell: IdealCell | MemristorCell
    noise: ReadNoise | None
    phases: tuple[Phase, ...]
    gives_volts: bool = False

    @classmethod
    def make(
        cls,
        dac: Dac | None,
        input_range: float,
        cell: IdealCell | MemristorCell,
        noise: ReadNoise | None,
        device: torch.device,
        gives_volts: bool = False,
    ) -> Drive:
        """`noise` None reads without noise, as ideal cells always do. `gives_volts`: in place of signals."""
        noise = noise if isinstance(cell, MemristorCell) else None
        signs = _signs(dac)
        if dac is None or dac.bits is None:
            phases = tuple(Phase(sign or 1.0, sign, None) for sign in signs)
            return cls(dac, input_range, cell, noise, phases, gives_volts)
        largest = convert.dac_max_code(dac.bits)
        codes = torch.arange(-largest, largest + 1, device=device)
        slice_bits = _slice_bits(dac)
        slice_largest = (1 << slice_bits) - 1
        fractions = convert.dac_fractions(dac, slice_largest, cell.signal, device)
        phases = ()
        for sign in signs:
            magnitudes = (sign * codes).clamp_min(0) if sign else codes.abs()
            for shift in _shifts(dac):
                digits = ((magnitudes >> shift) & slice_largest) * (1 if sign else codes.sign())
                tables = _laws(cell, noise, fractions[digits + slice_largest], gives_volts)
                worth = (sign or 1) * (slice_largest << shift) / largest
                phases += (Phase(worth, sign, tuple(table.float() for table in tables)),)
        return cls(dac, input_range, cell, noise, phases, gives_volts)

    def __call__(self, phase: Phase, x: Tensor, rows: int) -> Rows:
        """Signals [row_tiles, n, rows] of inputs [n, in], noise terms, clipped inputs: see `elementwise.look_up`."""
        if phase.tables is not None:
            codes_per_input = len(phase.tables[0]) // 2 / self.input_range
            looked_up: Rows = steps(x).look_up(x, codes_per_input, phase.tables, rows)
            return looked_up
        clipped: Tensor | int = 0
        if self.dac is not None:
            clipped = (x.abs() > self.input_range).sum()
            x = (x / self.input_range).clamp_(-1, 1)
        u = split_rows(x, rows)
        driven = (phase.sign * u).clamp_(min=0) if phase.sign else u
        signals, *variances = _laws(self.cell, self.noise, driven, self.gives_volts)
        return signals, elementwise.noise_terms(*variances) if variances else None, clipped

    def response(self, x: Tensor) -> Tensor:
        """[n]: what all phases together add to a column at inputs [n], per unit of r_pos - r_neg."""
        signals = (phase.worth * self(phase, x[:, None].float(), 1)[0].flatten() for phase in self.phases)
        return torch.stack(list(signals)).sum(dim=0)


def phase_count(dac: Dac | None) -> int:
    """The phases in which an input is read."""
    return len(_signs(dac)) * len(_shifts(dac))


def driven_bits(dac: Dac) -> int:
    """The bits, sign included, that a DAC with codes converts in a phase."""
    return _slice_bits(dac) + (dac.polarity == "signed")


def _signs(dac: Dac | None) -> tuple[int, ...]:
    """Of the inputs that are driven one after the other, 0 for both at once."""
    return (1, -1) if dac is not None and dac.polarity == "two_phase" else (0,)


def _slice_bits(dac: Dac) -> int:
    assert dac.bits is not None
    return dac.slice_bits or dac.bits - 1


def _shifts(dac: Dac | None) -> range:
    """The lowest bit of each slice of an input's magnitude."""
    return range(1) if dac is None or dac.bits is None else range(0, dac.bits - 1, _slice_bits(dac))


def steps(x: Tensor) -> ModuleType:
    """The module that does the steps of a read around its matrix products where `x` is."""
    return compiled if x.device.type == "cpu" else elementwise


def _laws(cell: IdealCell | MemristorCell, noise: ReadNoise | None, u: Tensor, gives_volts: bool) -> tuple[Tensor, ...]:
    """The signal and, with noise, the two variances at fractions `u` of the full-scale voltage; or that in volts."""
    if gives_volts and isinstance(cell, MemristorCell):
        return (u * cell.vmax_volts,)
    if noise is None or isinstance(cell, IdealCell):
        return (cell.signal(u),)
    return (cell.signal(u), *cell.noise_variances(u, noise))
