"""Verify reads: the current scale, noise and ADC of a programmer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.device import DeviceModel, load_device, read_noise_std_amperes
from memsim.device.interface import CurrentScale
from memsim.device.verify import NOISE_REACH, VerifyRead
from memsim.hardware import Noise, VerifyAdc

DEVICE = load_device("synaptogen")  # for Hypothesis, which does not go with fixtures
N = 200_000


def scale_of(device: DeviceModel = DEVICE) -> CurrentScale:
    return CurrentScale(device, 0.3, 0.16)


def test_the_scale_is_currents_over_full_scale(device: DeviceModel) -> None:
    scale = scale_of(device)
    r = torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64)
    volts = torch.tensor(0.3, dtype=torch.float64)
    amperes = device.current_amperes(volts, r)
    assert scale.full_scale_amperes == pytest.approx(amperes[0].item())
    torch.testing.assert_close(scale.currents(r), amperes / amperes[0])
    torch.testing.assert_close(scale.states(scale.currents(r)), r)


def test_without_noise_and_adc_a_read_is_the_current() -> None:
    r = torch.linspace(0.1, 0.9, 50)
    assert torch.equal(VerifyRead(scale_of(), None, None)(r, torch.ones(50)), scale_of().currents(r))


@pytest.mark.parametrize("noise", [Noise(), Noise(shot_scale=0.0), Noise(johnson_scale=0.0, bandwidth_hz=1e9)])
def test_noise_is_that_of_a_read(noise: Noise, device: DeviceModel, generator: torch.Generator) -> None:
    """0.08 % of the LRS current, 0.2 % of a fifth of it, with physics' noise at 100 MHz."""
    scale, volts = scale_of(device), torch.tensor(0.3)
    for state in (0.16, 0.74):
        r = torch.full((N,), state)
        reads = VerifyRead(scale, noise, None)(r, torch.randn(N, generator=generator))
        std = read_noise_std_amperes(device.conductance_siemens(volts, r[:1]), volts, **noise.model_dump())
        expected = std.item() / scale.full_scale_amperes
        assert reads.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * N))
        assert reads.mean().item() == pytest.approx(
            scale.currents(r[:1]).item(), abs=5 * expected / math.sqrt(N) + 1e-6
        )


@settings(deadline=None)
@given(st.integers(2, 12), st.floats(1.25, 4))
def test_an_adc_rounds_to_its_codes(bits: int, full_scale: float) -> None:
    read = VerifyRead(scale_of(), None, VerifyAdc(bits=bits, full_scale=full_scale))
    currents = torch.linspace(-0.1, 1.1 * full_scale, 301)
    reads = read(scale_of().states(currents), torch.ones_like(currents))
    step = full_scale / (2**bits - 1)
    codes = reads / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    torch.testing.assert_close(reads, currents.clamp(0, full_scale), rtol=0, atol=0.5 * step + 1e-5)


@settings(deadline=None)
@given(st.integers(2, 12), st.floats(0.05, 1.2))
def test_the_highest_current_is_where_reads_pass_the_target(bits: int, target: float) -> None:
    read = VerifyRead(scale_of(), None, VerifyAdc(bits=bits))
    highest = read.highest_current(torch.tensor(target, dtype=torch.float64))
    around = scale_of().states(highest + torch.tensor([-1e-5, 1e-5], dtype=torch.float64))
    below, above = (read(around, torch.ones(2)) <= target).tolist()
    assert (below, above) == (True, False)
    exact = VerifyRead(scale_of(), None, None)
    assert exact.highest_current(torch.tensor(target)) == torch.tensor(target)


@given(st.floats(0.0, 1.2), st.floats(0, 100))
def test_noise_reaches_as_many_standard_deviations_as_stated(current: float, shot_scale: float) -> None:
    noise, scale = Noise(shot_scale=shot_scale), scale_of()
    above = VerifyRead(scale, noise, None).within_reach(torch.tensor(current, dtype=torch.float64))
    siemens = above * scale.full_scale_amperes / 0.3
    std = read_noise_std_amperes(siemens, torch.tensor(0.3, dtype=torch.float64), **noise.model_dump())
    assert (above - current).item() == pytest.approx(NOISE_REACH * std.item() / scale.full_scale_amperes, rel=1e-6)
    assert VerifyRead(scale, None, None).within_reach(torch.tensor(current)) == torch.tensor(current)
