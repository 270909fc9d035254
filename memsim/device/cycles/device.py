"""The device of kind `cycles`: cells known by their switching cycles, as arrays see it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from memsim.device.cycles.features import draw_states, fraction_below
from memsim.device.cycles.model import UR, US, DeviceModel
from memsim.device.cycles.programming import make_programmer, mean_states
from memsim.device.interface import Ageing, Disturbed, Programmer
from memsim.errors import InputError
from memsim.hardware import IncrementalReset, Scheme


@dataclass(frozen=True, eq=False)
class CyclesDevice(DeviceModel):
    """A device of kind `cycles`: see `Device`."""

    @property
    def has_ageing(self) -> bool:
        """Return False: the cycles say nothing of the time after programming."""
        return False

    def require_programmable(self, config: Scheme, cell_bits: int) -> None:
        """Raise InputError for more than two levels without a closed loop that stops in between."""
        if cell_bits > 1 and not isinstance(config, IncrementalReset):
            raise InputError(
                f"weights.cell_bits: {cell_bits} bits per cell need programming: {{scheme: incremental_reset}}; "
                f"{config.scheme} gives a cell of {self.name} two states"
            )

    def programmer(self, config: Scheme, levels: int) -> Programmer:
        """Return the programmer of `config` for cells of `levels` levels."""
        return make_programmer(config, self, levels)

    def mean_states(self, config: Scheme, levels: int) -> tuple[float, ...]:
        """Return the mean state of each digit: exact for single pulses, else over many cells of a fixed key."""
        return mean_states(config, self, levels)

    def ageing(self, seconds: float, config: Scheme, levels: int, key: int) -> Ageing | None:
        """Return None: the cycles say nothing of the time after programming."""
        return None

    def disturbed(self, volts: float, config: Scheme) -> Disturbed:
        """Return the fractions of cells that reads at -`volts` and `volts` change.

        A cell in HRS SETs at U <= US, and a cell in LRS moves towards HRS at U > UR (Hennen et al., Front. Neurosci.
        16:941753, 2022).
        """
        hrs_set = 1 - fraction_below(self, US, -volts, config.history)
        return Disturbed(hrs_set, fraction_below(self, UR, volts, config.history))

    def stuck_states(self, is_lrs: Tensor, cells: Tensor, key: int) -> Tensor:
        """Draw the states [n] of fresh `cells` [n] in LRS where `is_lrs` [n], else in HRS."""
        return draw_states(self, is_lrs, cells, key)
