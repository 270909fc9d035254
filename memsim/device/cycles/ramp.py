"""Ramps of rising partial-RESET pulses, evaluated without simulating each pulse.

Between two SETs, a cell's partial RESETs are a function of the features of its next cycle (Hennen et al., Front.
Neurosci. 16:941753, 2022): I_tr(U) = a |Umax - U|^eta + c from the LRS at UR to the HRS at Umax. The state rises with
the voltage, so bisection finds the pulse at which it passes a threshold. (In the shipped device the state of 12 cells
in a million, outliers with a very low HRS, falls back slightly before the end; bisection may miss their first passing.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memsim.device.cycles.model import DeviceModel


@dataclass(frozen=True)
class RampCells:
    """`n` cells in LRS and the transition by which they leave it. Tensors are [n]."""

    lrs: Tensor  # state r
    first: Tensor  # int32: the first pulse above UR
    slope: Tensor  # a of the transition
    end_amperes: Tensor  # c: the current at Umax of the HRS to come

    def select(self, cells: Tensor) -> RampCells:
        """Return the cells of the indices `cells` [m]."""
        return RampCells(*(getattr(self, field.name).index_select(0, cells) for field in dataclasses.fields(self)))


class RampTables(NamedTuple):
    """The numbers of a `ResetRamp` of K pulses for cells of G groups, in float32 where no other type is given."""

    pulses: int
    start_volts: np.float32
    pulses_per_volt: np.float32
    llrs_polynomial: NDArray[np.float32]
    hhrs_polynomial: NDArray[np.float32]
    full_volts: np.float32
    exponent: np.float32
    full_llrs: np.float32  # the current at Umax in r = 0, in amperes
    full_window: np.float32
    distance: NDArray[np.float32]  # [2^m], padded for bisection
    llrs: NDArray[np.float32]  # [K]
    window: NDArray[np.float32]  # [K]
    work: NDArray[np.float32]  # [4, K + 1] of llrs, window, distance and a constant current
    bounds: NDArray[np.float32]  # [G, 2^m], padded for bisection
    thresholds: NDArray[np.float32]  # [G]


class ResetRamp:
    """Rising pulses of `volts` [K] (float64), equally spaced; those at Umax and above are full RESETs."""

    def __init__(self, device: DeviceModel, volts: Tensor) -> None:
        self._device = device
        self.volts = volts.float()
        self._start = volts[0].item()
        self._pulses_per_volt = (len(volts) - 1) / (volts[-1] - volts[0]).item() if len(volts) > 1 else 1.0
        at = self.volts.clamp(max=device.reset_full_volts)  # where the transition has arrived at the HRS
        self._distance = device.reset_distance(at)
        self._llrs, self._window = device.llrs_current_amperes(at), device.window_amperes(at)
        # power U I of a pulse (ohmic beyond Umax, as in FullPulse), summed over the pulses before k: [K + 1]
        by_current = self.volts.double().square() / at.double()
        currents = torch.stack([self._llrs, self._window, self._distance, torch.ones_like(at)]).double()
        sums = (by_current * currents).cpu().cumsum(1)  # in the same order for every device
        self._work = torch.nn.functional.pad(sums, (1, 0)).float().to(at.device)

    def __len__(self) -> int:
        return len(self.volts)

    def cells(self, lrs: Tensor, reset_volts: Tensor, hrs: Tensor) -> RampCells:
        """Return cells in the state `lrs` [n] that leave it above `reset_volts` [n] for the state `hrs` [n]."""
        device = self._device
        end = device.current_amperes(torch.tensor(device.reset_full_volts, device=lrs.device), hrs)
        slope = (device.current_amperes(reset_volts, lrs) - end) / device.reset_distance(reset_volts)
        first = ((reset_volts - self._start) * self._pulses_per_volt).floor() + 1
        return RampCells(lrs, first.clamp_(0, len(self)).int(), slope, end)

    def states(self, cells: RampCells, sent: Tensor) -> Tensor:
        """Return the states r [..., n] after the first `sent` [..., n] (int32) pulses."""
        last = (sent - 1).clamp_(min=0).flatten()
        distance, llrs, window = (
            table.index_select(0, last).view(sent.shape) for table in (self._distance, self._llrs, self._window)
        )
        moved = (cells.slope * distance + cells.end_amperes - llrs) / window
        return torch.where(sent > cells.first, moved, cells.lrs)

    def pulses_to(self, cells: RampCells, thresholds: Tensor, group: Tensor) -> Tensor:
        """Return the number of pulses [n] (int32) that take each cell to a state of at least thresholds[group].

        `thresholds` [G] are states, and `group` [n] (int32) has the index of each cell's. The number is K + 1 where all
        K pulses do not suffice.
        """
        # r >= threshold is I_tr <= I(U; threshold), as the window is negative
        bounds, distance = self._bounds(thresholds), self._padded(self._distance, 0.0)
        row = group * bounds.shape[1]

        def falls_short(pulse: Tensor) -> Tensor:
            amperes = cells.slope * distance.index_select(0, pulse) + cells.end_amperes
            return amperes > bounds.flatten().index_select(0, pulse + row)

        pulses = torch.maximum(self._bisect(cells.lrs, falls_short), cells.first).add_(1)
        return pulses.masked_fill_(cells.lrs >= thresholds.float().index_select(0, group), 0)

    def work(self, cells: RampCells, sent: Tensor) -> Tensor:
        """Return the sum [n] of U I, in watts, over the first `sent` pulses, each at the current after the pulse."""
        still = torch.minimum(sent, cells.first)
        llrs, window = self._work[:2].index_select(1, still)
        distance, constant = self._work[2:].index_select(1, sent) - self._work[2:].index_select(1, still)
        work: Tensor = llrs + cells.lrs * window + cells.slope * distance + cells.end_amperes * constant
        return work

    def tables(self, thresholds: Tensor) -> RampTables:
        """Return the numbers of the ramp, and those that `pulses_to` takes with `thresholds` [G], for compiled code."""
        device = self._device
        full_volts = torch.tensor(device.reset_full_volts)
        return RampTables(
            len(self),
            np.float32(self._start),
            np.float32(self._pulses_per_volt),
            device.llrs.float().numpy(),
            device.hhrs.float().numpy(),
            np.float32(device.reset_full_volts),
            np.float32(device.reset_exponent),
            np.float32(device.llrs_current_amperes(full_volts).item()),
            np.float32(device.window_amperes(full_volts).item()),
            self._padded(self._distance, 0.0).numpy(),
            self._llrs.numpy(),
            self._window.numpy(),
            self._work.numpy(),
            self._bounds(thresholds).numpy(),
            thresholds.float().numpy(),
        )

    def _bounds(self, thresholds: Tensor) -> Tensor:
        """Return the transition's current [G, 2^m] below which a cell's state is beyond its threshold."""
        return self._padded(self._llrs + thresholds[:, None].float() * self._window, torch.inf)

    def _bisect(self, cells: Tensor, holds: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the number of pulses [n] (int32, 0 to K), from the first on, for which `holds` is true of each cell.

        `holds` takes one pulse [n] (int32) of each cell. Pulses from K on are padding, for which it must be false.
        """
        count = torch.zeros_like(cells, dtype=torch.int32)
        for step in (1 << bit for bit in reversed(range(len(self).bit_length()))):
            count.add_(holds(count + (step - 1)), alpha=step)
        return count

    def _padded(self, table: Tensor, value: float) -> Tensor:
        """Pad `table` [..., K] with `value` to the 2^m places of the bisection."""
        return torch.nn.functional.pad(table, (0, (1 << len(self).bit_length()) - len(self)), value=value)
