"""Wires: what the resistance of word and bit lines leaves of a crossbar's currents.

Word line i is driven with V_i before its first cell, bit line j is held at 0 V before its first cell, that of row 0.
Every segment (driver to first cell, cell to cell, first cell to ground) has `wire_ohms` w. The current I_ij of cell
(i, j) flows through all of word line i up to column j and all of bit line j up to row i, so it lowers the voltage
across another cell by w times the segments that they share on a line:

    U = V 1' - w (I(U) K_cols + K_rows I(U)),        K_n[a, b] = min(a, b),  a, b = 1 .. n

That is Kirchhoff's current law at every node, the node voltages eliminated (K_n is the inverse of the Laplacian of a
chain of n unit resistors that is grounded before the first). With the slopes D = dI/dU, the Jacobian 1 + w K D is
similar to the symmetric 1 + w sqrt(D) K sqrt(D): its eigenvalues lie between 1 and 1 + lambda, and lambda, that of a
matrix without negative entries, is at most max (w K D x) / x for any positive x (Collatz and Wielandt; Horn and
Johnson, Matrix Analysis, 8.1). Between known bounds Chebyshev's semi-iteration (Saad, Iterative Methods for Sparse
Linear Systems, algorithm 12.1), here on the residual of the non-linear equation, takes a number of steps that is known
beforehand, and no coefficient of it depends on what it solves: every frame is read as it would be alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memsim.device import DeviceModel
from memsim.errors import InputError

CHUNK_CELLS = {"cpu": 1 << 18, "cuda": 1 << 25}
"""About how many cells are solved at a time, by device type: changes speed and memory, never a result."""
BOUND_STEPS = 8
"""Power iterations on x, which bring the bound of lambda to within a per cent of it."""
SMALLEST_SLOPE_SIEMENS = 1e-12
"""Keeps that bound defined where nothing conducts."""
LARGEST_BOUND = 50.0
"""Of lambda: 128 x 128 cells reach it at 15 ohm if all are in LRS, at 45 ohm with a quarter."""
LARGEST_VMAX_VOLTS = 1.0
"""Beyond both, the steps, which are counted for cells that curve a little, go astray. Either is far from any use: by
then 95 % of the current is lost, or the cells switch while they are read (and their envelopes fall, near -1.2 V)."""


@dataclass(frozen=True, eq=False)
class WiredArrays:
    """Arrays of one size between resistive lines. They compute in the dtype of `states` (float32; float64 to check).

    `states` [tiles, rows, cols]; `present` likewise is 1 for a cell and 0 (as its state then is) where nothing
    conducts, None where all are there. `envelopes` [degree, 2]: the polynomials, highest power first and without their
    zero constant, of LLRS(U) and HHRS(U) - LLRS(U). `slope_bound` is a bound of the lambda above.
    """

    states: Tensor
    present: Tensor | None
    envelopes: Tensor
    wire_ohms: float
    vmax_volts: float
    tolerance: float
    slope_bound: float

    @classmethod
    def make(
        cls,
        device: DeviceModel,
        states: Tensor,
        wire_ohms: float,
        vmax_volts: float,
        present: Tensor | None = None,
        tolerance: float = 1e-5,
    ) -> WiredArrays:
        """From `states` [tiles, rows, cols] of cells of `device` that are driven with up to +-`vmax_volts`.

        `present` [tiles, rows, cols] (bool) says where there is a cell. `tolerance` is the part of the voltage dropped
        on wires that the solve may leave unsolved (root mean square over cells, weighted by their slopes). Raises
        InputError where wires take next to all of the current, or beyond LARGEST_VMAX_VOLTS, and ValueError where
        `wire_ohms` is negative or not finite, or `tolerance` not between 0 and 1.
        """
        if not (math.isfinite(wire_ohms) and wire_ohms >= 0):
            raise ValueError(f"wire_ohms is {wire_ohms}; it must be finite and at least 0")
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance is {tolerance}; it must lie between 0 and 1")
        if wire_ohms > 0 and vmax_volts > LARGEST_VMAX_VOLTS:
            raise InputError(
                f"wire_ohms: wires are solved for up to {LARGEST_VMAX_VOLTS} V, not for vmax_volts {vmax_volts:g}"
            )
        states = states if states.dtype == torch.float64 else states.float()
        if present is not None:
            present = present.to(states.dtype)
            states = states * present
        degree = max(len(device.llrs), len(device.hhrs)) - 1
        llrs, hhrs = (_to_degree(envelope[:-1], degree) for envelope in (device.llrs, device.hhrs))
        envelopes = torch.stack([llrs, hhrs - llrs], dim=1).to(states)
        arrays = cls(states, present, envelopes, float(wire_ohms), vmax_volts, tolerance, 0.0)
        bound = arrays._bound_of_slope()
        if bound > LARGEST_BOUND:
            size, most = " x ".join(map(str, states.shape[1:])), wire_ohms * LARGEST_BOUND / bound
            raise InputError(
                f"wire_ohms {wire_ohms:g}: wires take nearly all from {size} cells; it can be about {most:.2g} at most"
            )
        return dataclasses.replace(arrays, slope_bound=bound)

    @property
    def iterations(self) -> int:
        """Steps n after which 1 / T_n((kappa + 1) / (kappa - 1)) <= `tolerance`, where kappa = 1 + lambda."""
        if self.slope_bound == 0:
            return 0
        root = math.sqrt(1 + self.slope_bound)
        return math.ceil(math.acosh(1 / self.tolerance) / math.log((root + 1) / (root - 1)))

    def linearised(self) -> WiredArrays:
        """The same arrays with every cell replaced by its conductance at 0 V."""
        return dataclasses.replace(self, envelopes=self.envelopes[-1:])

    def transposed(self) -> WiredArrays:
        """The same arrays driven from the ends of their bit lines, with those of their word lines at 0 V."""
        present = None if self.present is None else self.present.mT.contiguous()
        return dataclasses.replace(self, states=self.states.mT.contiguous(), present=present)

    def column_amperes(self, volts: Tensor) -> Tensor:
        """Column currents [tiles, n, cols] at the driver voltages `volts` [tiles, n, rows]."""
        amperes = volts.new_empty(*volts.shape[:2], self.states.shape[2])
        for part, frames, cells, across in self.solutions(volts):
            amperes[part, frames] = cell_amperes(cells, across).sum(2)
        return amperes

    def driver_watts(self, volts: Tensor) -> Tensor:
        """[], float64: the power that the drivers of `volts` [tiles, n, rows] give, over all arrays and frames."""
        total = volts.new_zeros((), dtype=torch.float64)
        for part, frames, cells, across in self.solutions(volts):
            row_amperes = cell_amperes(cells, across).sum(3)  # what a word line takes leaves it through its cells
            total += (volts[part, frames] * row_amperes).sum(dtype=torch.float64)
        return total

    def cell_volts(self, volts: Tensor) -> Tensor:
        """The voltage across every cell, [tiles, n, rows, cols], at the driver voltages `volts` [tiles, n, rows]."""
        whole = volts.new_empty(*volts.shape, self.states.shape[2])
        for part, frames, _, across in self.solutions(volts):
            whole[part, frames] = across
        return whole

    def solutions(self, volts: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """`cell_volts` in chunks of bounded memory: (which tiles, which of their n frames, their `cells`, voltages)."""
        tiles, n, _ = volts.shape
        most = max(1, CHUNK_CELLS.get(volts.device.type, CHUNK_CELLS["cpu"]) // self.states[0].numel())
        together = max(1, most // max(n, 1))
        for tile in range(0, tiles, together):
            part = slice(tile, tile + together)
            cells = self.cells(part)
            for frame in range(0, n, most):
                frames = slice(frame, frame + most)
                yield part, frames, cells, self._solve(cells, volts[part, frames])

    def cells(self, part: slice) -> Tensor:
        """[degree, tiles, 1, rows, cols]: the polynomials of the currents of some tiles' cells, highest power first."""
        llrs, window = self.envelopes.view(-1, 2, 1, 1, 1, 1).unbind(1)
        there = llrs if self.present is None else llrs * self.present[part, None]
        return torch.addcmul(there, window, self.states[part, None])

    def attenuation(self) -> Tensor:
        """[tiles, rows, cols]: the part of its driver's voltage that a cell sees, alone and with cells linearised.

        That of `transposed`, transposed back, is the part of a current added in a cell that leaves through the cell's
        own bit line: the network is reciprocal.
        """
        tiles, rows, _ = self.states.shape
        parts = torch.empty_like(self.states)
        one_volt = torch.eye(rows, dtype=parts.dtype, device=parts.device).expand(tiles, -1, -1)
        for part, frames, _, across in self.linearised().solutions(one_volt):
            parts[part, frames] = across.diagonal(frames.start, 1, 2).mT
        return parts

    def noise_weights(self) -> tuple[Tensor, Tensor]:
        """How much of each cell's (Johnson, shot) noise variance, at its driver's voltage, a column takes.

        Each is [tiles, rows, cols]. With a the `attenuation` and h that of a current, 4kTB G becomes h^2 4kTB G and
        2eB |G V| becomes h^2 a 2eB |G V|. At 1 ohm and 128 x 128 cells the standard deviation of a column is then
        that of all cells' noise sent through the wires, to 0.4 % (without the weights, it is 1.5 times as large).
        The wires' own noise is left out. Where there is no cell there is no noise.
        """
        squared = self.transposed().attenuation().mT.square()
        if self.present is not None:
            squared = squared * self.present
        return squared, squared * self.attenuation()

    @cached_property
    def _ladders(self) -> tuple[Tensor, Tensor]:
        """w K of the word lines [1, cols, cols] and of the bit lines [1, rows, rows]."""
        _, rows, cols = self.states.shape
        return self._ladder(cols), self._ladder(rows)

    def _ladder(self, n: int) -> Tensor:
        segments = torch.arange(1, n + 1, dtype=self.states.dtype, device=self.states.device)
        return self.wire_ohms * torch.minimum(segments[:, None], segments)[None]

    def _solve(self, cells: Tensor, volts: Tensor) -> Tensor:
        """Cell voltages [tiles, n, rows, cols] at driver voltages [tiles, n, rows]."""
        count = volts.shape[0] * volts.shape[1]
        # a product for each frame, not one for all: it rounds alike, however many there are
        word_lines, bit_lines = (ladder.expand(count, -1, -1) for ladder in self._ladders)
        drivers = volts[..., None]
        across = drivers.repeat(1, 1, 1, cells.shape[-1])
        step = torch.zeros_like(across)
        half_width = self.slope_bound / 2
        centre = 1 + half_width
        ratio, momentum, gain = half_width / centre, 0.0, 1 / centre
        for _ in range(self.iterations):
            # no solution lies beyond what drivers of opposite sign put across a cell; early steps may, and there the
            # polynomials, meant for small voltages, run away
            within = across.clamp(-2 * self.vmax_volts, 2 * self.vmax_volts)
            amperes = torch.addcmul(cell_amperes(cells, within), cells[-1], across - within).flatten(0, 1)
            at_drivers = torch.baddbmm(across.flatten(0, 1), amperes, word_lines).baddbmm_(bit_lines, amperes)
            step.mul_(momentum).sub_(at_drivers.view_as(step), alpha=gain).add_(drivers, alpha=gain)
            across += step
            following = 1 / (2 * centre / half_width - ratio)
            ratio, momentum, gain = following, following * ratio, 2 * following / half_width
        return across

    def _bound_of_slope(self) -> float:
        """The lambda of the array that has the largest, the slopes being the largest within +-`vmax_volts`."""
        if self.wire_ohms == 0:
            return 0.0
        (word_lines,), (bit_lines,) = self._ladders
        bounds = []
        for tile in range(len(self.states)):
            cells = self.cells(slice(tile, tile + 1))[:, 0, 0]
            powers = torch.arange(len(cells), 0, -1).to(cells)[:, None, None]
            slopes = torch.full_like(cells[0], SMALLEST_SLOPE_SIEMENS)
            for volts in torch.linspace(-self.vmax_volts, self.vmax_volts, 9).tolist():
                slopes = torch.maximum(slopes, (cells * powers * volts ** (powers - 1)).sum(0))
            x = torch.ones_like(slopes)
            for _ in range(BOUND_STEPS):
                product = (slopes * x) @ word_lines + bit_lines @ (slopes * x)
                bound = (product / x).max()
                x = product / product.max()
            bounds.append(bound)
        return float(torch.stack(bounds).max())


def cell_amperes(cells: Tensor, volts: Tensor) -> Tensor:
    """Currents of `WiredArrays.cells` at `volts` [tiles, n, rows, cols], by Horner's rule."""
    amperes = cells[0].expand_as(volts)
    for coefficient in cells[1:]:
        amperes = torch.addcmul(coefficient, amperes, volts)
    return amperes * volts


def _to_degree(coefficients: Tensor, degree: int) -> Tensor:
    return torch.nn.functional.pad(coefficients, (degree - len(coefficients), 0))
