"""Line resistance: the currents of a crossbar with IR drop on its word and bit lines.

Word line i is driven with V_i before its first cell, and bit line j is held at 0 V before its first cell, in row 0.
Every segment (driver to first cell, cell to cell, first cell to ground) has the resistance w, `segment_ohms`. The
current I_ij of cell (i, j) flows through word line i up to column j and through bit line j up to row i. It lowers the
voltage across another cell by w for each segment that both cells share on a line:

    U = V 1' - w (I(U) K_cols + K_rows I(U)),        K_n[a, b] = min(a, b),  a, b = 1 .. n

This is Kirchhoff's current law at every node, with the node voltages eliminated (K_n is the inverse of the Laplacian of
a chain of n unit resistors that is grounded before the first). With the slopes D = dI/dU, the Jacobian 1 + w K D is
similar to the symmetric 1 + w sqrt(D) K sqrt(D), so its eigenvalues lie between 1 and 1 + lambda. Here lambda is the
largest eigenvalue of a matrix without negative entries, and is at most max (w K D x) / x for any positive x (Collatz
and Wielandt; Horn and Johnson, Matrix Analysis, 8.1). Between known bounds, Chebyshev's semi-iteration (Saad, Iterative
Methods for Sparse Linear Systems, algorithm 12.1), applied to the residual of the non-linear equation, takes a number
of steps that is known beforehand. None of its coefficients depends on the right-hand side, so the result of a frame
does not depend on the frames beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memsim.crossbar import compiled_wires
from memsim.device import Device
from memsim.errors import InputError
from memsim.portable.kernels import is_compiled

CHUNK_CELLS = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Approximate number of cells that are solved at a time, by device type; changes speed and memory, never a result."""
BOUND_STEPS = 8
"""Power iterations on x, which bring the bound of lambda to within 1 % of lambda."""
SMALLEST_SLOPE_SIEMENS = 1e-12
"""Smallest slope that the bound assumes, which keeps it defined where nothing conducts."""
LARGEST_BOUND = 50.0
"""Largest bound of lambda that is accepted: 128 x 128 cells reach it at 15 ohm if all are in LRS, at 45 ohm if a
quarter is."""
LARGEST_VMAX_VOLTS = 1.0
"""Largest read voltage that is accepted. Beyond this or LARGEST_BOUND the iteration, whose number of steps assumes
slightly non-linear cells, may not converge. Both are far from any use: 95 % of the current is lost, or the cells switch
while they are read (and near -1.2 V their envelopes fall)."""


@dataclass(frozen=True, eq=False)
class IrDropArrays:
    """Arrays of one size whose lines have a resistance.

    They compute in the dtype of `states`: float32, or float64 to check the solve.

    Attributes:
        states: [tiles, rows, cols], the states r of the cells; 0 where there is no cell.
        present: [tiles, rows, cols], 1 for a cell and 0 where nothing conducts; None where all cells are present.
        envelopes: [degree, 2], the polynomials of LLRS(U) and of HHRS(U) - LLRS(U) in amperes, highest power first and
            without their zero constant.
        segment_ohms: the resistance of a segment of a line.
        vmax_volts: the largest driver voltage.
        tolerance: the part of the voltage drop that the solve may leave unsolved.
        slope_bound: an upper bound of lambda.
    """

    states: Tensor
    present: Tensor | None
    envelopes: Tensor
    segment_ohms: float
    vmax_volts: float
    tolerance: float
    slope_bound: float

    @classmethod
    def make(
        cls,
        device: Device,
        states: Tensor,
        segment_ohms: float,
        vmax_volts: float,
        present: Tensor | None = None,
        tolerance: float = 1e-5,
    ) -> IrDropArrays:
        """Prepare the solve of cells of `device` in `states` [tiles, rows, cols], driven with up to +-`vmax_volts`.

        `present` [tiles, rows, cols] (bool) marks the cells. `tolerance` is the part of the voltage drop on the lines
        that the solve may leave unsolved (root mean square over cells, weighted by their slopes). Raises InputError
        where the lines take nearly all of the current, or `vmax_volts` is beyond LARGEST_VMAX_VOLTS.
        """
        if segment_ohms > 0 and vmax_volts > LARGEST_VMAX_VOLTS:
            raise InputError(
                f"wires: IR drop is solved for up to {LARGEST_VMAX_VOLTS} V, not for dac.vmax_volts {vmax_volts:g}"
            )
        states = states if states.dtype == torch.float64 else states.float()
        if present is not None:
            present = present.to(states.dtype)
            states = states * present
        degree = max(len(device.llrs), len(device.hhrs)) - 1
        llrs, hhrs = (_to_degree(envelope[:-1], degree) for envelope in (device.llrs, device.hhrs))
        envelopes = torch.stack([llrs, hhrs - llrs], dim=1).to(states)
        arrays = cls(states, present, envelopes, float(segment_ohms), vmax_volts, tolerance, 0.0)
        bound = arrays._bound_of_slope()
        if bound > LARGEST_BOUND:
            size, most = " x ".join(map(str, states.shape[1:])), segment_ohms * LARGEST_BOUND / bound
            raise InputError(
                f"wires.ohms {segment_ohms:g}: lines take nearly all of the current of {size} cells; choose at most"
                f" about {most:.2g}"
            )
        return dataclasses.replace(arrays, slope_bound=bound)

    @property
    def iterations(self) -> int:
        """The number of steps n at which 1 / T_n((kappa + 1) / (kappa - 1)) <= `tolerance`, with kappa = 1 + lambda."""
        if self.slope_bound == 0:
            return 0
        root = math.sqrt(1 + self.slope_bound)
        return math.ceil(math.acosh(1 / self.tolerance) / math.log((root + 1) / (root - 1)))

    @property
    def _steps(self) -> list[tuple[float, float]]:
        """The (momentum, gain) of each step of the iteration: a step is momentum * the last one + gain * residual."""
        half_width = self.slope_bound / 2
        centre = 1 + half_width
        ratio, momentum, gain = half_width / centre, 0.0, 1 / centre
        steps = []
        for _ in range(self.iterations):
            steps.append((momentum, gain))
            following = 1 / (2 * centre / half_width - ratio)
            ratio, momentum, gain = following, following * ratio, 2 * following / half_width
        return steps

    def part(self, tiles: slice) -> IrDropArrays:
        """Return the arrays `tiles`."""
        present = None if self.present is None else self.present[tiles]
        return dataclasses.replace(self, states=self.states[tiles], present=present)

    def linearised(self) -> IrDropArrays:
        """Return the same arrays with every cell replaced by its conductance at 0 V."""
        return dataclasses.replace(self, envelopes=self.envelopes[-1:])

    def transposed(self) -> IrDropArrays:
        """Return the same arrays with bit lines driven and word lines held at 0 V."""
        present = None if self.present is None else self.present.mT.contiguous()
        return dataclasses.replace(self, states=self.states.mT.contiguous(), present=present)

    def column_amperes(self, volts: Tensor) -> Tensor:
        """Return column currents [tiles, n, cols] in amperes at driver voltages `volts` [tiles, n, rows]."""
        amperes = volts.new_empty(*volts.shape[:2], self.states.shape[2])
        for part, frames, cells, across in self.solutions(volts):
            amperes[part, frames] = cell_amperes(cells, across).sum(2)
        return amperes

    def driver_watts(self, volts: Tensor) -> Tensor:
        """Return the power [] (float64, watts) of all arrays and frames at driver voltages `volts` [tiles, n, rows]."""
        total = volts.new_zeros((), dtype=torch.float64)
        for part, frames, cells, across in self.solutions(volts):
            row_amperes = cell_amperes(cells, across).sum(3)  # all current of a word line flows through its cells
            total += (volts[part, frames] * row_amperes).sum(dtype=torch.float64)
        return total

    def solutions(self, volts: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Solve for the cell voltages at driver voltages `volts` [tiles, n, rows] in chunks of bounded memory.

        Yields (tiles, frames, the polynomials of the tiles' `cells`, voltages across the cells) of each chunk.
        """
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
        """Return the current polynomials [degree, tiles, 1, rows, cols] of the tiles `part`, highest power first."""
        llrs, window = self.envelopes.view(-1, 2, 1, 1, 1, 1).unbind(1)
        there = llrs if self.present is None else llrs * self.present[part, None]
        return torch.addcmul(there, window, self.states[part, None])

    def attenuation(self) -> Tensor:
        """Return the part [tiles, rows, cols] of a driver's voltage that reaches a cell, with cells linearised.

        The other drivers are at 0 V. Since the network is reciprocal, the attenuation of `transposed`, transposed back,
        is the part of a current injected in a cell that leaves through the cell's own bit line.
        """
        return self._unit_responses(self.states.new_empty(0, *self.states.shape))[0]

    def unit_responses(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Drive each row alone with 1 V, with cells linearised, as if for `attenuation`.

        Returns:
            The `attenuation`, and sums over the cells of each column of their voltages times `weights` [n, tiles, rows,
            cols]: [n, tiles, rows driven, cols].
        """
        if not is_compiled(self.states):
            return self._unit_responses(weights)
        siemens = self.linearised().cells(slice(None))[0, :, 0]
        return compiled_wires.unit_responses(siemens, self.segment_ohms, self._steps, weights)

    def _unit_responses(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        tiles, rows, _ = self.states.shape
        own, sums = torch.empty_like(self.states), torch.empty_like(weights)
        one_volt = torch.eye(rows, dtype=own.dtype, device=own.device).expand(tiles, -1, -1)
        for part, frames, _, across in self.linearised().solutions(one_volt):
            own[part, frames] = across.diagonal(frames.start, 1, 2).mT
            sums[:, part, frames] = torch.einsum("wtij,tnij->wtnj", weights[:, part], across)
        return own, sums

    def noise_weights(self, attenuation: Tensor, received: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shares of each cell's (Johnson, shot) noise variance that reach its column, [tiles, rows, cols].

        `attenuation` and `received` [tiles, rows, cols] are the attenuations of a voltage and of a current. The shares
        apply to the variances at the driver's voltage. With a the `attenuation` of a voltage and h that of a
        current, 4kTB G becomes h^2 4kTB G, and 2eB |G V| becomes h^2 a 2eB |G V|. At 1 ohm and 128 x 128 cells, the
        standard deviation of a column then agrees to 0.4 % with that of all cells' noise sent through the network; it
        is 1.5 times as large without the shares. The lines' own noise is left out, and a missing cell has no noise.
        """
        squared = received.square()
        if self.present is not None:
            squared = squared * self.present
        return squared, squared * attenuation

    @cached_property
    def _ladders(self) -> tuple[Tensor, Tensor]:
        """The matrices w K of the word lines [1, cols, cols] and of the bit lines [1, rows, rows]."""
        _, rows, cols = self.states.shape
        return self._ladder(cols), self._ladder(rows)

    def _ladder(self, n: int) -> Tensor:
        segments = torch.arange(1, n + 1, dtype=self.states.dtype, device=self.states.device)
        return self.segment_ohms * torch.minimum(segments[:, None], segments)[None]

    def _solve(self, cells: Tensor, volts: Tensor) -> Tensor:
        """Solve for cell voltages [tiles, n, rows, cols] at driver voltages [tiles, n, rows]."""
        count = volts.shape[0] * volts.shape[1]
        # one product for each frame, because one for all would round differently with their number
        word_lines, bit_lines = (ladder.expand(count, -1, -1) for ladder in self._ladders)
        drivers = volts[..., None]
        across = drivers.repeat(1, 1, 1, cells.shape[-1])
        step = torch.zeros_like(across)
        for momentum, gain in self._steps:
            # no solution exceeds the voltage between drivers of opposite sign; early steps may, and the polynomials,
            # which are meant for small voltages, diverge there
            within = across.clamp(-2 * self.vmax_volts, 2 * self.vmax_volts)
            amperes = torch.addcmul(cell_amperes(cells, within), cells[-1], across - within).flatten(0, 1)
            at_drivers = torch.baddbmm(across.flatten(0, 1), amperes, word_lines).baddbmm_(bit_lines, amperes)
            step.mul_(momentum).sub_(at_drivers.view_as(step), alpha=gain).add_(drivers, alpha=gain)
            across += step
        return across

    def _bound_of_slope(self) -> float:
        """Return the largest bound of lambda over the arrays, with the largest slopes within +-`vmax_volts`."""
        if self.segment_ohms == 0:
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
    """Return the currents of `IrDropArrays.cells` at `volts` [tiles, n, rows, cols], in amperes (Horner's rule)."""
    amperes = cells[0].expand_as(volts)
    for coefficient in cells[1:]:
        amperes = torch.addcmul(coefficient, amperes, volts)
    return amperes * volts


def _to_degree(coefficients: Tensor, degree: int) -> Tensor:
    return torch.nn.functional.pad(coefficients, (degree - len(coefficients), 0))
