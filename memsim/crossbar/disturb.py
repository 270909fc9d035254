"""Which cells a read disturbs: those whose SET or RESET threshold it crosses."""

from __future__ import annotations

from dataclasses import dataclass

from memsim.device import UR, US, fraction_below, load_device
from memsim.spec import HardwareSpec

NEGLIGIBLE = 1e-4
"""Fractions of the cells below this are not worth a warning; at 0.4 V it is 4e-5, at 0.5 V 7e-4."""


@dataclass(frozen=True)
class DisturbRisk:
    """Fractions of the cells that a read of the largest voltage changes."""

    volts: float
    hrs_set: float  # HRS cells that its negative polarity SETs
    lrs_reset: float  # LRS cells that its positive polarity RESETs in part

    @property
    def is_negligible(self) -> bool:
        return max(self.hrs_set, self.lrs_reset) < NEGLIGIBLE


def disturb_risk(spec: HardwareSpec) -> DisturbRisk | None:
    """That of a layer's resolved spec; None for cells without thresholds.

    A cell in HRS SETs at U <= US, one in LRS moves towards HRS at U > UR (Hennen et al., Front. Neurosci. 16:941753).
    """
    if spec.cell == "ideal" or spec.dac is None:
        return None
    device, history, volts = load_device(spec.cell), spec.programming.history, spec.dac.vmax_volts
    hrs_set = 0.0
    if spec.dac.polarity == "signed":
        hrs_set = 1 - fraction_below(device, US, -volts, history)
    return DisturbRisk(volts, hrs_set, fraction_below(device, UR, volts, history))
