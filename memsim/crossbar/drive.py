"""The drive of the rows: from inputs, through DAC and cells, to the signals that each row adds to a column.

An input is read in one or more phases, whose columns are converted separately and added up by the phase's significance.
Positive and negative inputs are two phases with `polarity: two_phase`, and each slice of an input's bits is one phase
with `slice_bits`. A signed DAC that converts all its bits at once has one phase.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from memsim.crossbar import compiled, convert, elementwise
from memsim.crossbar.cell import IdealCell, MemristorCell
from memsim.crossbar.tiling import split_rows
from memsim.hardware import Dac, ReadNoise
from memsim.portable.kernels import is_compiled

Rows = tuple[Tensor, Tensor | None, Tensor | int]
"""Signals, noise terms and the number of clipped inputs: see `elementwise.look_up`."""


@dataclass(frozen=True)
class Phase:
    """One reading of the arrays for an input.

    Attributes:
        significance: the factor of its result in the sum over phases.
        sign: the sign of the inputs that it drives; 0 for both.
        tables: the signal of each DAC code and, with noise, the two variances of `MemristorCell.noise_variances`; None
            for a DAC without codes.
    """

    significance: float
    sign: int
    tables: tuple[Tensor, ...] | None


@dataclass(frozen=True)
class Drive:
    """The drive of a matrix's rows; an input of `input_range` is full scale.

    With `gives_volts` rows carry voltages in place of signals.
    """

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
        """Work out the phases and their tables on `device`; `noise` None reads without noise, as ideal cells do."""
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
                significance = (sign or 1) * (slice_largest << shift) / largest
                phases += (Phase(significance, sign, tuple(table.float() for table in tables)),)
        return cls(dac, input_range, cell, noise, phases, gives_volts)

    def __call__(self, phase: Phase, x: Tensor, rows: int) -> Rows:
        """Drive inputs [n, in] on tiles of `rows`: see `elementwise.look_up` for what is returned."""
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
        """Return the sum over phases [n] of the signals of inputs [n], for a unit of r_pos - r_neg."""
        signals = (phase.significance * self(phase, x[:, None].float(), 1)[0].flatten() for phase in self.phases)
        return torch.stack(list(signals)).sum(dim=0)


def phase_count(dac: Dac | None) -> int:
    """Return the number of phases in which an input is read."""
    return len(_signs(dac)) * len(_shifts(dac))


def driven_bits(dac: Dac) -> int:
    """Return the number of bits, sign included, that a DAC with codes converts in a phase."""
    return _slice_bits(dac) + (dac.polarity == "signed")


def _signs(dac: Dac | None) -> tuple[int, ...]:
    """Return the signs of the inputs that are driven one after the other; 0 is both at once."""
    return (1, -1) if dac is not None and dac.polarity == "two_phase" else (0,)


def _slice_bits(dac: Dac) -> int:
    assert dac.bits is not None
    return dac.slice_bits or dac.bits - 1


def _shifts(dac: Dac | None) -> range:
    """Return the lowest bit of each slice of an input's magnitude."""
    return range(1) if dac is None or dac.bits is None else range(0, dac.bits - 1, _slice_bits(dac))


def steps(x: Tensor) -> ModuleType:
    """Return the module whose functions run before and after the matrix products on the device of `x`."""
    return compiled if is_compiled(x) else elementwise


def _laws(cell: IdealCell | MemristorCell, noise: ReadNoise | None, u: Tensor, gives_volts: bool) -> tuple[Tensor, ...]:
    """Return the signal and, with noise, its two variances at fractions `u` of full scale; or the voltage alone."""
    if gives_volts and isinstance(cell, MemristorCell):
        return (u * cell.vmax_volts,)
    if noise is None or isinstance(cell, IdealCell):
        return (cell.signal(u),)
    return (cell.signal(u), *cell.noise_variances(u, noise))
