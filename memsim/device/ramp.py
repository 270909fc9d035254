"""A ramp of rising partial-RESET pulses, all of them at once.

After a SET and until the next, a cell's partial RESETs are a function of the features of its next cycle (Hennen et al.,
Front. Neurosci. 16:941753, 2022): I_tr(U) = a |Umax - U|^eta + c from the LRS at UR to the HRS at Umax. Its state rises
with the voltage, so where it passes a threshold is found by bisection, without simulating a pulse. (In the shipped
device 12 of a million cells, outliers whose HRS is hardly one, fall back a little before the end; in those bisection
may miss the first passing.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.device.model import DeviceModel


@dataclass(frozen=True)
class RampCells:
    """`n` cells in LRS, and how they will leave it. Tensors [n]."""

    lrs: Tensor  # state r
    first: Tensor  # int32: the first pulse above UR
    slope: Tensor  # a of the transition
    end_amperes: Tensor  # c: the current at Umax of the HRS to come

    def select(self, cells: Tensor) -> RampCells:
        """Those of the indices `cells` [m]."""
        return RampCells(*(getattr(self, field.name).index_select(0, cells) for field in dataclasses.fields(self)))


class ResetRamp:
    """Pulses of `volts` [K], rising; full RESETs at Umax and above."""

    def __init__(self, device: DeviceModel, volts: Tensor) -> None:
        self._device = device
        self.volts = volts.float()
        at = self.volts.clamp(max=device.reset_full_volts)  # there the transition has arrived at the HRS
        self._distance = device.reset_distance(at)
        self._llrs, self._window = device.llrs_current_amperes(at), device.window_amperes(at)
        # work of a pulse, U I (ohmic beyond Umax, as that of a FullPulse), summed over the pulses before k: [K + 1]
        by_current = self.volts.double().square() / at.double()
        self._work = {
            name: torch.cat([by_current.new_zeros(1), (by_current * amperes.double()).cumsum(0)]).float()
            for name, amperes in (
                ("llrs", self._llrs),
                ("window", self._window),
                ("distance", self._distance),
                ("constant", torch.ones_like(at)),
            )
        }

    def __len__(self) -> int:
        return len(self.volts)

    def cells(self, lrs: Tensor, reset_volts: Tensor, hrs: Tensor) -> RampCells:
        """Cells in the state `lrs` [n] that leave it above `reset_volts` [n] for `hrs` [n], a state too."""
        device = self._device
        end = device.current_amperes(torch.tensor(device.reset_full_volts, device=lrs.device), hrs)
        slope = (device.current_amperes(reset_volts, lrs) - end) / device.reset_distance(reset_volts)
        bounds = self._padded(self.volts, torch.inf)
        first = self._bisect(lrs, lambda pulse: bounds.index_select(0, pulse) <= reset_volts)
        return RampCells(lrs, first, slope, end)

    def states(self, cells: RampCells, sent: Tensor) -> Tensor:
        """States r [..., n] after the first `sent` [..., n] (int32) pulses."""
        last = (sent - 1).clamp_(min=0).flatten()
        distance, llrs, window = (
            table.index_select(0, last).view(sent.shape) for table in (self._distance, self._llrs, self._window)
        )
        moved = (cells.slope * distance + cells.end_amperes - llrs) / window
        return torch.where(sent > cells.first, moved, cells.lrs)

    def pulses_to(self, cells: RampCells, thresholds: Tensor, group: Tensor) -> Tensor:
        """How many pulses [n] (int32, 0 to K + 1) take each cell to a state of at least thresholds[group].

        `thresholds` [G] are states, `group` [n] (int32) says which is a cell's; K + 1 where all pulses do not suffice.
        """
        # r >= threshold is I_tr <= I(U; threshold), as the window is negative
        bounds = self._padded(self._llrs + thresholds[:, None].float() * self._window, torch.inf)
        distance = self._padded(self._distance, 0.0)
        row = group * bounds.shape[1]

        def falls_short(pulse: Tensor) -> Tensor:
            amperes = (cells.slope * distance.index_select(0, pulse)).add_(cells.end_amperes)
            return amperes > bounds.flatten().index_select(0, pulse + row)

        pulses = torch.maximum(self._bisect(cells.lrs, falls_short), cells.first).add_(1)
        return pulses.masked_fill_(cells.lrs >= thresholds.float().index_select(0, group), 0)

    def work(self, cells: RampCells, sent: Tensor) -> Tensor:
        """[n] the sum of U I, in watts, over the first `sent` pulses, each at the current that it leaves behind."""
        still = torch.minimum(sent, cells.first)
        llrs, window = (self._work[name].index_select(0, still) for name in ("llrs", "window"))
        distance, constant = (
            self._work[name].index_select(0, sent) - self._work[name].index_select(0, still)
            for name in ("distance", "constant")
        )
        return llrs + cells.lrs * window + cells.slope * distance + cells.end_amperes * constant

    def _bisect(self, cells: Tensor, holds: Callable[[Tensor], Tensor]) -> Tensor:
        """For how many pulses [n] (int32, 0 to K), from the first on, `holds` is true of each of `cells` [n].

        `holds` takes one pulse [n] (int32) of each cell, from K on those of the padding, for which it must be false.
        """
        count = torch.zeros_like(cells, dtype=torch.int32)
        for step in (1 << bit for bit in reversed(range(len(self).bit_length()))):
            count.add_(holds(count + (step - 1)), alpha=step)
        return count

    def _padded(self, table: Tensor, value: float) -> Tensor:
        """`table` [..., K] continued by `value` to the 2^m places that are bisected."""
        return torch.nn.functional.pad(table, (0, (1 << len(self).bit_length()) - len(self)), value=value)
