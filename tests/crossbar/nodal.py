"""Exact solution of one small array with line resistance by Kirchhoff's current law at every node, dense in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from memsim.crossbar.line_resistance import IrDropArrays
from memsim.device import DeviceModel

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Nodal:
    """Cells `states` [rows, cols]; each has a node on its word line and one on its bit line, in this order.

    `conducts` [rows, cols] (bool) says which cells there are.
    """

    device: DeviceModel
    states: Tensor
    segment_ohms: float
    conducts: Tensor | None = None

    @cached_property
    def _laws(self) -> tuple[Array, Array]:
        """Polynomials [cells, degree + 1] of the currents and of their slopes, highest power first."""
        r = self.states.double().numpy().reshape(-1, 1)
        llrs, hhrs = self.device.llrs.numpy(), self.device.hhrs.numpy()
        hhrs = np.concatenate([np.zeros(len(llrs) - len(hhrs)), hhrs])
        currents = (1 - r) * llrs + r * hhrs
        if self.conducts is not None:
            currents = currents * self.conducts.numpy().reshape(-1, 1)
        return currents, currents[:, :-1] * np.arange(len(llrs) - 1, 0, -1)

    @cached_property
    def _wires(self) -> Array:
        """[nodes, nodes]: the current out of every node into wires, by the potentials of the nodes."""
        rows, cols = self.states.shape
        cells = rows * cols
        number = np.arange(cells).reshape(rows, cols)
        matrix = np.zeros((2 * cells, 2 * cells))
        segments = [(number[:, :-1], number[:, 1:]), (cells + number[:-1], cells + number[1:])]
        for one, other in ((a, b) for ones, others in segments for a, b in zip(ones.flat, others.flat, strict=True)):
            matrix[one, one] += 1 / self.segment_ohms
            matrix[other, other] += 1 / self.segment_ohms
            matrix[one, other] -= 1 / self.segment_ohms
            matrix[other, one] -= 1 / self.segment_ohms
        for node in (*number[:, 0], *(cells + number[0])):  # to a driver, to ground
            matrix[node, node] += 1 / self.segment_ohms
        return matrix

    def potentials(self, volts: Tensor) -> Array:
        """[nodes] at the driver voltages `volts` [rows], by Newton's method."""
        rows, cols = self.states.shape
        cells = rows * cols
        driven = np.zeros(2 * cells)
        driven[np.arange(rows) * cols] = volts.double().numpy() / self.segment_ohms
        currents, _ = self._laws
        nodes = np.zeros(2 * cells)
        for _ in range(50):
            across = nodes[:cells] - nodes[cells:]
            amperes = np.array([np.polyval(law, u) for law, u in zip(currents, across, strict=True)])
            step = np.linalg.solve(
                self._jacobian(across), driven - self._wires @ nodes - np.concatenate([amperes, -amperes])
            )
            nodes += step
            if np.abs(step).max() <= 1e-13:
                return nodes
        raise AssertionError("Newton's method does not converge")

    def _jacobian(self, across: Array) -> Array:
        _, laws = self._laws
        slopes = np.diag([np.polyval(law, u) for law, u in zip(laws, across, strict=True)])
        return self._wires + np.block([[slopes, -slopes], [-slopes, slopes]])

    def column_amperes(self, volts: Tensor) -> Array:
        """[cols] into ground."""
        rows, cols = self.states.shape
        return self.potentials(volts)[rows * cols :][:cols] / self.segment_ohms

    def driver_amperes(self, volts: Tensor) -> Array:
        """[rows] out of the drivers."""
        rows, cols = self.states.shape
        return (volts.double().numpy() - self.potentials(volts)[: rows * cols : cols]) / self.segment_ohms

    def received(self, volts: Tensor) -> Array:
        """[cells, cols]: what a small current added in a cell adds to each column, at the drivers' `volts` [rows]."""
        rows, cols = self.states.shape
        cells = rows * cols
        nodes = self.potentials(volts)
        added = np.concatenate([-np.eye(cells), np.eye(cells)])  # from the word line into the bit line
        moved = np.linalg.solve(self._jacobian(nodes[:cells] - nodes[cells:]), added)
        return moved[cells : cells + cols].T / self.segment_ohms


def cell_volts(arrays: IrDropArrays, volts: Tensor) -> Tensor:
    """The voltage [tiles, n, rows, cols] that memsim solves for across every cell."""
    whole = volts.new_empty(*volts.shape, arrays.states.shape[2])
    for part, frames, _, across in arrays.solutions(volts):
        whole[part, frames] = across
    return whole
