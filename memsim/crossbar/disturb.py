"""Read disturb: reads that cross the SET or RESET threshold of a cell change its state."""

from __future__ import annotations

from dataclasses import dataclass

from memsim.device import load_device
from memsim.hardware import HardwareSpec

NEGLIGIBLE = 1e-4
"""The smallest fraction of disturbed cells that deserves a warning; at 0.4 V 4e-5 of the cells are, at 0.5 V 7e-4."""


@dataclass(frozen=True)
class DisturbRisk:
    """The fractions of the cells that a read at the largest voltage changes."""

    volts: float
    hrs_set: float  # HRS cells that its negative polarity SETs
    lrs_reset: float  # LRS cells that its positive polarity RESETs in part

    @property
    def is_negligible(self) -> bool:
        """Whether both fractions are too small for a warning."""
        return max(self.hrs_set, self.lrs_reset) < NEGLIGIBLE


def read_pulses(spec: HardwareSpec) -> tuple[float, ...]:
    """Return the worst-case read pulses of a layer in volts, repeated until states settle.

    There are none where the spec has no read disturb.
    """
    if spec.read_disturb is None or spec.dac is None:
        return ()
    volts = spec.dac.vmax_volts
    return (volts,) if spec.dac.polarity == "two_phase" else (-volts, volts) * 2


def disturb_risk(spec: HardwareSpec) -> DisturbRisk | None:
    """Return the risk of a layer's resolved spec; None for cells without thresholds.

    A cell in HRS SETs at U <= US, and a cell in LRS moves towards HRS at U > UR (Hennen et al., Front. Neurosci.
    16:941753, 2022).
    """
    if spec.cell == "ideal" or spec.dac is None:
        return None
    volts = spec.dac.vmax_volts
    found = load_device(spec.cell).disturbed(volts, spec.programming)
    if found is None:
        return None
    return DisturbRisk(volts, found.hrs_set if spec.dac.polarity == "signed" else 0.0, found.lrs_reset)
