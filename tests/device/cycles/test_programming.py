"""Programming schemes against programmers that send every pulse and read every cell, one after the other."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import scipy.stats
import torch

from memsim.crossbar.program import program_matrix
from memsim.device import Cells, DeviceModel, draw_states, state_means
from memsim.device.cycles import programming as programming_module
from memsim.device.cycles.first_cycles import Round
from memsim.device.cycles.model import HRS, LRS
from memsim.device.cycles.programming import (
    ClosedLoopProgrammer,
    FullPulse,
    Outcome,
    Programmer,
    make_programmer,
    ramp_volts,
)
from memsim.device.verify import VerifyRead
from memsim.errors import InputError
from memsim.hardware import (
    IncrementalReset,
    Noise,
    Scheme,
    SinglePulse,
    Verify,
    VerifyAdc,
    WriteVerify,
    load_hardware,
)

QUIET = Verify(noise=None)
COARSE = Verify(noise=None, adc=VerifyAdc(bits=6))


def write_verify(**keys: Any) -> WriteVerify:
    return WriteVerify(scheme="write_verify", **keys)


def incremental(**keys: Any) -> IncrementalReset:
    return IncrementalReset(scheme="incremental_reset", **keys)


def digits_of(n: int, levels: int = 2) -> torch.Tensor:
    return (torch.arange(n) % levels).int()


def outcome_of(programmer: Programmer, digits: torch.Tensor, key: int = 1) -> Outcome:
    return programmer(digits, torch.arange(len(digits)), key)


# A programmer that sends one pulse after another


def by_hand(config: Scheme, cells: Cells, digits: torch.Tensor, generator: torch.Generator, levels: int) -> Outcome:
    """What the scheme does to `cells`, by its rules: every pulse is applied, every verify is a read of every cell."""
    programmer = make_programmer(config, cells.device, levels)
    read = VerifyRead(programmer.scale, config.verify.noise, config.verify.adc)
    target = programmer.targets[digits.long()]
    n = len(digits)
    pulses, reads = torch.zeros(2, n, dtype=torch.int32)
    joules = torch.zeros(n, dtype=torch.float64)
    active = torch.ones(n, dtype=torch.bool)

    def pulse(volts: float, on: torch.Tensor) -> None:
        cells.apply(torch.where(on, volts, 0.0))
        pulses.add_(on)
        umax = cells.device.reset_full_volts
        edge = torch.tensor(max(-umax, min(volts, umax)), dtype=torch.float64)
        amperes = cells.device.current_amperes(edge, cells.r.double()) * volts / edge
        joules.add_(on * config.pulse_seconds * volts * amperes)

    for attempt in range(config.tries if isinstance(config, WriteVerify) else config.retries + 1):
        if isinstance(config, WriteVerify):
            if attempt:
                pulse(config.set_volts, active & (digits == 0))
            pulse(config.reset_volts, active)
            pulse(config.set_volts, active & (digits == 1))
            measured = read(cells.r, torch.randn(n, generator=generator))
            reads += active
        else:
            pulse(config.reset_volts, active)
            pulse(config.set_volts, active)
            measured = read(cells.r, torch.randn(n, generator=generator))
            reads += active
            above = active & (measured > target)
            for volts in ramp_volts(config).tolist():
                pulse(volts, above)
                measured = torch.where(above, read(cells.r, torch.randn(n, generator=generator)), measured)
                reads += above
                above &= measured > target
        active &= (measured - target).abs() > config.tolerance
    return Outcome(cells.r, pulses, reads, active, joules.float())


class Replay:
    """In place of CycleFeatures: the features that given cells had, cycle by cycle."""

    record: torch.Tensor  # [cycles, 4, n]

    def __init__(self, _: DeviceModel, round_: Round, tries: int, cells: torch.Tensor, *__: object) -> None:
        self._rounds = iter([[(feature, cycle + attempt) for feature, cycle in round_] for attempt in range(tries)])
        self._cells = cells

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        features = [self.record[cycle, feature, self._cells] for feature, cycle in next(self._rounds)]
        return torch.stack(features), torch.zeros(len(self._cells))

    def keep(self, cells: torch.Tensor) -> None:
        self._cells = self._cells[cells]


def quiet_cells(device: DeviceModel, n: int) -> Cells:
    """Fresh cells without noise from cycle to cycle: their features are a function of their past."""
    cells = Cells(device, torch.arange(n), 3)
    cells._var = cells._var.clone()
    cells._var[:, :4] = 0
    # far more spread from cycle to cycle than such cells would have, so that trying again changes something
    for feature, shift in ((LRS, 0.15), (HRS, 0.1)):
        cells._mu[feature] *= 1 + shift * (torch.rand(n, generator=torch.Generator().manual_seed(feature)) - 0.5)
    return cells


EXACT: dict[str, tuple[Scheme, int]] = {
    "write_verify": (write_verify(verify=QUIET, tries=6, tolerance=0.02), 2),
    "write_verify with an ADC": (write_verify(verify=COARSE, tries=4, tolerance=0.03), 2),
    "one try": (write_verify(verify=QUIET, tries=1), 2),
    "incremental_reset": (incremental(verify=QUIET), 2),
    "high and narrow": (incremental(verify=QUIET, high_level=0.98, tolerance=0.01, retries=5), 2),
    "four levels": (incremental(verify=QUIET, low_level=0.05), 4),
    "coarse steps with an ADC": (incremental(verify=COARSE, step_volts=0.03, stop_volts=1.6), 8),
    "no retry": (incremental(verify=QUIET, retries=0), 2),
}


@pytest.mark.parametrize(("config", "levels"), EXACT.values(), ids=EXACT)
def test_without_noise_every_pulse_and_state_is_that_of_pulse_by_pulse(
    config: Scheme, levels: int, device: DeviceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 4000
    digits = digits_of(n, levels)
    recorded, cells = quiet_cells(device, n), quiet_cells(device, n)
    record = [recorded.features.clone()]
    for _ in range(10):
        recorded.apply(-5.0)
        recorded.apply(5.0)
        record.append(recorded.features.clone())
    expected = by_hand(config, cells, digits, torch.Generator(), levels)

    Replay.record = torch.stack(record)
    monkeypatch.setattr(programming_module, "CycleFeatures", Replay)
    programmer = make_programmer(config, device, levels)
    assert isinstance(programmer, ClosedLoopProgrammer)
    outcome = programmer.by_definition(digits, torch.arange(n), key=0)
    same = outcome.pulses == expected.pulses
    # a current within 1e-7 of a threshold may round to either side
    assert (~same).sum() <= 2
    assert torch.equal(outcome.verify_reads[same], expected.verify_reads[same])
    assert torch.equal(outcome.failed[same], expected.failed[same])
    torch.testing.assert_close(outcome.r[same], expected.r[same], rtol=0, atol=3e-6)
    if isinstance(config, IncrementalReset):  # but for the full RESETs, charged at the mean HRS
        assert outcome.joules.sum().item() == pytest.approx(expected.joules.sum().item(), rel=0.02)
    if config.tolerance <= 0.02:
        assert outcome.verify_reads.unique().numel() > 2  # trying again took place


NOISY = {
    "write_verify": (write_verify(tries=3), 2, 20_000),
    "write_verify in loud noise": (write_verify(verify=Verify(noise=Noise(shot_scale=30)), tries=4), 2, 20_000),
    "incremental_reset": (incremental(step_volts=0.02, tolerance=0.05), 2, 10_000),
    "in loud noise": (incremental(verify=Verify(noise=Noise(shot_scale=30)), step_volts=0.02, retries=1), 4, 10_000),
    "in loud noise with an ADC": (
        incremental(verify=Verify(noise=Noise(shot_scale=15), adc=VerifyAdc(bits=7)), step_volts=0.015),
        2,
        10_000,
    ),
    "many reads near the target": (
        incremental(verify=Verify(noise=Noise(shot_scale=20)), start_volts=0.7, stop_volts=0.8, step_volts=0.001),
        2,
        5_000,
    ),
    "to the end of the ramp": (
        incremental(verify=Verify(noise=Noise(shot_scale=30)), stop_volts=0.8, step_volts=0.02, high_level=0.7),
        2,
        10_000,
    ),
    "zero history": (incremental(verify=QUIET, step_volts=0.02, history="zero"), 2, 10_000),
}


@pytest.mark.parametrize(("config", "levels", "n"), NOISY.values(), ids=NOISY)
def test_with_noise_outcomes_are_distributed_as_pulse_by_pulse(
    config: Scheme, levels: int, n: int, device: DeviceModel, generator: torch.Generator
) -> None:
    """States, pulses and reads of every level by Kolmogorov-Smirnov (once in 10 000); failures within five standard
    errors. With 30 times the shot noise, 2 % of the LRS current, most cells are stopped by it."""
    digits = digits_of(n, levels)
    expected = by_hand(config, Cells(device, torch.arange(n), 1, config.history), digits, generator, levels)
    outcome = outcome_of(make_programmer(config, device, levels), digits, key=2)
    for level in range(levels):
        here = digits == level
        for mine, other in (
            (outcome.r, expected.r),
            (outcome.pulses, expected.pulses),
            (outcome.verify_reads, expected.verify_reads),
        ):
            distance = scipy.stats.ks_2samp(mine[here].numpy(), other[here].numpy(), method="asymp").statistic
            assert distance < 2.2 * math.sqrt(2 / int(here.sum()))
        rates = outcome.failed[here].double().mean(), expected.failed[here].double().mean()
        assert abs(rates[0] - rates[1]) < 5 * math.sqrt((sum(rates) / 2 + 1 / n) * 2 / int(here.sum()))
    spread = expected.joules.double().std().item()
    assert outcome.joules.mean().item() == pytest.approx(
        expected.joules.mean().item(), abs=5 * spread * math.sqrt(2 / n), rel=0
    )


# What the schemes achieve, and their limits


def test_single_pulses_are_the_states_drawn(device: DeviceModel) -> None:
    digits = digits_of(5000)
    outcome = outcome_of(make_programmer(SinglePulse(), device, 2), digits)
    assert torch.equal(outcome.r, draw_states(device, digits > 0, torch.arange(len(digits)), 1))
    assert torch.equal(outcome.pulses, digits + 1)  # a RESET of all, a SET of the ones
    assert not outcome.verify_reads.any()
    assert not outcome.failed.any()


def test_a_wide_tolerance_takes_the_first_draw(device: DeviceModel) -> None:
    digits = digits_of(40_000)
    outcome = outcome_of(make_programmer(write_verify(tolerance=1.0, tries=50), device, 2), digits)
    assert torch.equal(outcome.pulses, digits + 1)
    assert (outcome.verify_reads == 1).all()
    assert not outcome.failed.any()
    for digit, mean in zip((1, 0), state_means(device), strict=True):
        drawn = outcome.r[digits == digit]
        assert drawn.mean().item() == pytest.approx(mean, abs=5 * drawn.std().item() / math.sqrt(20_000))


def test_more_tries_fail_less_and_what_passed_is_within_tolerance(device: DeviceModel) -> None:
    digits = digits_of(20_000)
    failures = []
    for tries in (1, 3, 10):
        programmer = make_programmer(write_verify(verify=QUIET, tries=tries), device, 2)
        outcome = outcome_of(programmer, digits)
        off = (programmer.scale.currents(outcome.r) - programmer.targets[digits.long()]).abs()
        assert (off[~outcome.failed] <= 0.03).all()
        assert (off[outcome.failed] > 0.03).all()
        assert outcome.verify_reads.max() == tries
        failures.append(outcome.failed.double().mean().item())
    assert failures[0] > 2 * failures[1] > 4 * failures[2] > 0


def test_incremental_reset_spreads_by_at_most_a_hundredth_of_full_scale(device: DeviceModel) -> None:
    """At every one of 2, 4 and 16 levels, over all cells, those that fail included; the mean is low by half a step."""
    for levels in (2, 4, 16):
        programmer = make_programmer(incremental(), device, levels)
        digits = digits_of(32_000, levels)
        outcome = outcome_of(programmer, digits)
        currents = programmer.scale.currents(outcome.r)
        for level, target in enumerate(programmer.targets.tolist()):
            off = currents[digits == level] - target
            assert off.std() < 0.01
            assert -0.015 < off.mean() < 0
        assert outcome.failed.double().mean() < 1e-3
        assert 60 < outcome.pulses.double().mean() < 90


def test_targets_are_equally_spaced_between_the_two_levels(device: DeviceModel) -> None:
    programmer = make_programmer(incremental(low_level=0.1, high_level=0.7), device, 4)
    assert programmer.targets.tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7])
    for config in (SinglePulse(), write_verify()):
        low, high = make_programmer(config, device, 2).targets.tolist()
        assert high == pytest.approx(1)
        assert 0.06 < low < 0.07


def test_finer_steps_spread_less_and_take_more_pulses(device: DeviceModel) -> None:
    """A cell lands anywhere within a step's change below its target: the mean error and the spread halve with it."""
    results = []
    for step in (0.02, 0.01, 0.005):
        config = incremental(verify=QUIET, step_volts=step, tolerance=1.0)
        programmer = make_programmer(config, device, 2)
        outcome = outcome_of(programmer, torch.ones(20_000, dtype=torch.int32))
        off = programmer.scale.currents(outcome.r) - programmer.targets[1]
        off = off[outcome.pulses > 2]  # those that are below the target from the start are no matter of steps
        results.append([-off.mean().item(), off.std().item(), 1 / (outcome.pulses - 2.0).mean().item()])
    for coarse, fine in pairwise(results):
        assert [a / b for a, b in zip(coarse, fine, strict=True)] == pytest.approx([2, 2, 2], rel=0.12)


def test_a_ramp_that_starts_too_high_or_ends_too_low_fails(device: DeviceModel) -> None:
    ones, zeros = torch.ones(2000, dtype=torch.int32), torch.zeros(2000, dtype=torch.int32)
    late = outcome_of(make_programmer(incremental(start_volts=1.2), device, 2), ones)
    assert late.failed.double().mean() > 0.97
    assert (late.pulses <= 4 * 3).all()
    short = make_programmer(incremental(stop_volts=0.62, verify=QUIET), device, 2)
    outcome = outcome_of(short, zeros)
    assert outcome.failed.double().mean() > 0.99
    assert (outcome.pulses[outcome.failed] == 4 * (2 + 5)).all()
    assert (outcome.verify_reads[outcome.failed] == 4 * (1 + 5)).all()


def test_the_ramp_ends_at_the_stop_voltage() -> None:
    def volts(step: float, stop: float) -> list[float]:
        return ramp_volts(incremental(start_volts=0.6, step_volts=step, stop_volts=stop)).tolist()

    assert volts(0.1, 1.0) == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])
    assert volts(0.3, 1.0) == pytest.approx([0.6, 0.9])
    assert volts(0.1, 0.6) == [0.6]


def test_a_pulse_s_energy_is_u_i_t_and_ohmic_beyond_umax(device: DeviceModel) -> None:
    r = torch.tensor([0.16, 0.84], dtype=torch.float64)
    for volts in (-1.2, 0.9):
        at = torch.tensor(volts, dtype=torch.float64)
        expected = 2e-6 * volts * device.current_amperes(at, r)
        torch.testing.assert_close(FullPulse(device, volts, 2e-6).joules(r), expected)
    umax = device.reset_full_volts
    for sign in (-1, 1):
        edge = FullPulse(device, sign * umax, 1e-6).joules(r)
        torch.testing.assert_close(FullPulse(device, 2 * sign * umax, 1e-6).joules(r), 4 * edge)
        assert (edge > 0).all()


@pytest.mark.parametrize("config", [SinglePulse(), write_verify(), incremental()], ids=lambda config: config.scheme)
def test_an_outcome_is_a_function_of_the_key(config: Scheme, device: DeviceModel) -> None:
    digits = digits_of(3000)
    first, again, other = (outcome_of(make_programmer(config, device, 2), digits, key) for key in (1, 1, 2))
    assert torch.equal(first.r, again.r)
    assert torch.equal(first.pulses, again.pulses)
    assert (first.r != other.r).double().mean() > 0.99


@pytest.mark.parametrize("scheme", [write_verify, incremental])
@pytest.mark.parametrize("keys", [{"set_volts": -1.5}, {"reset_volts": 1.2}])
def test_closed_loops_need_pulses_that_switch_every_cell(scheme: Any, keys: dict[str, float]) -> None:
    (value,) = keys.values()
    spec = load_hardware({"base": "physical", "weights": {"bits": 3}, "programming": scheme(**keys).model_dump()})
    expected = rf"closed loops need pulses that switch every cell: set_volts at most -2\.0 .*\(it is {value}\)"
    with pytest.raises(InputError, match=expected) as caught:
        program_matrix("layer", torch.ones(4, 4, dtype=torch.int8), spec, 0)
    assert "\n" not in str(caught.value)
