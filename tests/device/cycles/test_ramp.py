"""A ramp computed at once, against the same pulses one by one."""

from __future__ import annotations

import math

import pytest
import torch

from memsim.device import Cells, DeviceModel
from memsim.device.cycles.first_cycles import CycleFeatures
from memsim.device.cycles.model import HRS, LRS, UR
from memsim.device.cycles.ramp import RampCells, ResetRamp

N = 20_000
READ_VOLTS = torch.tensor(0.3)


def ramp_of(device: DeviceModel, start: float = 0.6, step: float = 0.005, stop: float = 1.45) -> ResetRamp:
    return ResetRamp(device, torch.arange(start, stop + step / 2, step, dtype=torch.float64))


def quiet_pair(device: DeviceModel, n: int = N) -> tuple[Cells, Cells]:
    """The same cells twice, just SET, whose next cycle is a function of their past (no fresh noise)."""
    pair = []
    for _ in range(2):
        cells = Cells(device, torch.arange(n), 3)
        cells._var = cells._var.clone()
        cells._var[:, :4] = 0
        cells.apply(-5.0)
        pair.append(cells)
    return pair[0], pair[1]


def seen_ahead(ramp: ResetRamp, cells: Cells) -> RampCells:
    """The ramp's view of cells in LRS; the next HRS is found by a full RESET."""
    lrs, reset_volts = cells.r.clone(), cells.features[UR].clone()
    cells.apply(5.0)
    return ramp.cells(lrs, reset_volts, cells.device.state_of_resistance(cells.features[HRS]))


@pytest.mark.parametrize(
    ("start", "step", "stop"), [(0.6, 0.005, 1.45), (0.8, 0.05, 1.2), (0.3, 0.02, 1.8), (1.0, 1.0, 1.0)]
)
def test_the_stopping_pulse_is_that_of_pulse_by_pulse(
    start: float, step: float, stop: float, device: DeviceModel
) -> None:
    """Counts are equal, and states but for the rounding of the currents that make them (1e-7 of 4e-4 A: 1e-6).

    Targets from 5 to 100 % of the mean LRS current: cells that are below from the start, cells that never get there.
    """
    ramp = ramp_of(device, start, step, stop)
    cells, ahead = quiet_pair(device)
    targets = torch.tensor([0.05, 0.2, 0.6, 0.9, 1.0]) * 6.67e-5
    group = torch.arange(N, dtype=torch.int32) % len(targets)
    target = targets[group.long()]
    expected = torch.zeros(N, dtype=torch.int32)
    work = torch.zeros(N, dtype=torch.float64)
    for volts in ramp.volts:
        above = cells.current_amperes(READ_VOLTS) > target
        cells.apply(torch.where(above, volts, 0.0))
        expected += above
        at = volts.double().clamp(max=device.reset_full_volts)  # ohmic beyond
        work += above * volts * volts / at * device.current_amperes(at, cells.r.double())
    expected += cells.current_amperes(READ_VOLTS) > target  # K + 1: all were not enough

    in_lrs = seen_ahead(ramp, ahead)
    pulses = ramp.pulses_to(in_lrs, device.state_of_current(READ_VOLTS, targets), group)
    # a cell within 1e-7 of its target may round to the other side
    assert (pulses != expected).sum() <= 2
    same = pulses == expected
    assert 0 < (pulses == 0).sum() < N
    assert (pulses == len(ramp) + 1).any()
    sent = pulses.clamp(max=len(ramp))
    torch.testing.assert_close(ramp.states(in_lrs, sent)[same], cells.r[same], rtol=0, atol=2e-6)
    torch.testing.assert_close(ramp.work(in_lrs, sent).double()[same], work[same], rtol=1e-4, atol=1e-8)


def test_states_rise_along_the_ramp(device: DeviceModel) -> None:
    """What bisection takes for granted, over many cells and the whole ramp (float32 rounds states by some 1e-6).

    But for outliers whose HRS is below 10 kohm, hardly more than an LRS: 12 of a million cells (five standard errors).
    """
    ramp = ramp_of(device, 0.4, 0.01, 1.6)
    sent = torch.arange(len(ramp) + 1, dtype=torch.int32)[:, None].expand(-1, N)
    falling = 0
    for cells in torch.arange(10 * N).split(N):
        (lrs, ur, hrs), _ = CycleFeatures(device, ((LRS, 0), (UR, 0), (HRS, 1)), 1, cells, key=3).draw()
        in_lrs = ramp.cells(device.state_of_resistance(lrs), ur, device.state_of_resistance(hrs))
        falls = (ramp.states(in_lrs, sent).diff(dim=0) < -3e-6).any(0)
        assert (hrs[falls] < 10e3).all()
        falling += int(falls.sum())
    assert falling <= 12e-6 * 10 * N + 5 * math.sqrt(12e-6 * 10 * N)


def test_before_ur_a_cell_stays_and_at_umax_it_is_in_hrs(device: DeviceModel) -> None:
    ramp = ramp_of(device, 0.1, 0.02, 1.5)
    _, cells = quiet_pair(device, 1000)
    lrs, reset_volts = device.state_of_resistance(cells.features[LRS]), cells.features[UR].clone()
    in_lrs = seen_ahead(ramp, cells)
    assert torch.equal(ramp.states(in_lrs, torch.zeros(1000, dtype=torch.int32)), lrs)
    assert torch.equal(in_lrs.first, (ramp.volts[:, None] <= reset_volts).sum(0).int())
    assert torch.equal(ramp.states(in_lrs, in_lrs.first), lrs)
    assert (ramp.states(in_lrs, in_lrs.first + 1) > lrs).all()
    hrs = ramp.states(in_lrs, torch.full((1000,), len(ramp), dtype=torch.int32))
    torch.testing.assert_close(hrs, device.state_of_resistance(cells.features[HRS]), rtol=0, atol=3e-6)
