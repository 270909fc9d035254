"""Which cells a read disturbs, those whose SET or RESET threshold it crosses, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Generator, Tensor

from memsim import rng
from memsim.device import UR, US, Cells, DeviceModel, draw_states, fraction_below, load_device
from memsim.device.features import History
from memsim.errors import InputError
from memsim.spec import HardwareSpec, IncrementalReset, Scheme

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


def read_pulses(spec: HardwareSpec) -> tuple[float, ...]:
    """What a layer's cells are read with at worst, over and over, until nothing changes any more: V, one by one."""
    if spec.read_disturb is None or spec.dac is None:
        return ()
    volts = spec.dac.vmax_volts
    return (volts,) if spec.dac.polarity == "two_phase" else (-volts, volts) * 2


def settle(
    r: Tensor, digits: Tensor, config: Scheme, device: DeviceModel, read_volts: Sequence[float], generator: Generator
) -> Tensor:
    """States [n] of cells programmed by a closed loop to `digits` [n], after reads at `read_volts`.

    A closed loop does not keep the thresholds of its cells, so which of them are disturbed is drawn by the fraction of
    the population, independently of their states; those that a read SETs are in the LRS of some cell then. (Cells that
    are programmed by single pulses are really read, in `pulse_cells`.) Raises InputError for reads beyond the first
    pulse of an incremental RESET, which they would go on with.
    """
    negative, positive = -min(0.0, *read_volts), max(0.0, *read_volts)
    if isinstance(config, IncrementalReset):
        if positive > config.start_volts:
            raise InputError(
                f"read_disturb: reads at {positive:g} V go on with the RESET that begins at {config.start_volts:g} V; "
                "lower dac.vmax_volts or raise programming.start_volts"
            )
        may_set, may_move = torch.ones_like(digits, dtype=torch.bool), torch.zeros_like(digits, dtype=torch.bool)
    else:
        may_set, may_move = digits == 0, digits > 0
    u = torch.rand(r.shape, generator=generator, device=r.device)
    hrs_set = 1 - fraction_below(device, US, -negative, config.history) if negative else 0.0
    is_set = may_set & (u < hrs_set)
    after = r.clone()
    after[is_set] = draw_states(device, torch.ones_like(r[is_set], dtype=torch.bool), generator, config.history)
    moves = may_move & (u < fraction_below(device, UR, positive, config.history))
    if moves.any():
        moved = _moved_states(device, positive, config.history)
        after[moves] = moved[torch.randint(len(moved), (int(moves.sum()),), generator=generator, device=r.device)]
    return after


@lru_cache(maxsize=16)
def _moved_states(device: DeviceModel, volts: float, history: History) -> Tensor:
    """States of LRS cells that a read at `volts` has moved, from as many cells as it takes to see some."""
    generator = rng.generator("disturb", device=device.device)
    moved: list[Tensor] = []
    for _ in range(256):
        cells = Cells(device, 1 << 15, generator, history)
        cells.apply(-2.0)
        before = cells.r.clone()
        cells.apply(volts)
        moved.append(cells.r[cells.r != before])
        if sum(map(len, moved)) >= 256:
            break
    found = torch.cat(moved)
    return found if len(found) else before[:1]  # so rare that it does not matter


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
