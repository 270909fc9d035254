"""The optional parts of a device model: SETs and RESETs that fail, limits of features, and an LRS in log10 ohm."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from memsim.device import Cells, DeviceModel, draw_states, load_device, save_device, state_means
from memsim.device.cycles.cells import draw_cycles, pulse_cells
from memsim.device.cycles.features import state_law
from memsim.device.cycles.model import HRS, LRS
from memsim.device.cycles.programming import ClosedLoopProgrammer, make_programmer
from memsim.errors import InputError
from memsim.hardware import IncrementalReset, Verify, WriteVerify
from memsim.portable.elementwise import random_words

N = 40_000
SHARES = (0.03, 0.01)
SET_QUANTILES, RESET_QUANTILES = (4.4, 4.8, 5.2), (3.6, 3.65, 3.7)
FAILURES = torch.tensor(
    [[share, *quantiles] for share, quantiles in zip(SHARES, (SET_QUANTILES, RESET_QUANTILES), strict=True)],
    dtype=torch.float64,
)


@pytest.fixture(scope="module")
def failing(device: DeviceModel) -> DeviceModel:
    return dataclasses.replace(device, failures=FAILURES)


@pytest.fixture(scope="module")
def limited(device: DeviceModel) -> DeviceModel:
    """Limits well within the distributions of HRS and LRS, and an LRS in log10 ohm."""
    gamma, means, cholesky = device.gamma.clone(), device.mixture_means.clone(), device.mixture_cholesky.clone()
    ln_10 = math.log(10)
    means[6] /= means[2] * ln_10
    means[2] = means[2].log10()
    cholesky[:, 2] /= 4530 * ln_10
    cholesky[:, 6] /= 4530 * ln_10
    limits = torch.tensor([[4.5, 5.0], [-2.0, -0.1], [3.63, 3.68], [0.1, 2.0]], dtype=torch.float64)
    return dataclasses.replace(
        device, gamma=gamma, mixture_means=means, mixture_cholesky=cholesky, lrs_is_log10=True, limits=limits
    )


def in_failure(model: DeviceModel, r: torch.Tensor, quantiles: tuple[float, ...]) -> torch.Tensor:
    """Whether states lie between those of the outer quantiles."""
    ends = model.state_of_resistance(10.0 ** torch.tensor([quantiles[0], quantiles[-1]]))
    return (r >= ends[0] - 1e-6) & (r <= ends[1] + 1e-6)


def test_a_share_of_sets_and_resets_fails(device: DeviceModel, failing: DeviceModel) -> None:
    cells, is_set = torch.arange(N), (torch.arange(N) % 2).int()
    plain, found = (draw_states(model, is_set, cells, 7) for model in (device, failing))
    changed = plain != found
    for digit, share, quantiles in ((1, SHARES[0], SET_QUANTILES), (0, SHARES[1], RESET_QUANTILES)):
        own = changed & (is_set == digit)
        assert own.sum() / (N / 2) == pytest.approx(share, abs=4 * math.sqrt(share / (N / 2)))
        r = found[own]
        assert in_failure(failing, r, quantiles).all()
        middle = failing.state_of_resistance(torch.tensor(10.0 ** quantiles[1]))
        assert (r < middle).float().mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(own.sum()))
    assert state_means(failing) == state_means(device)


def test_the_states_of_pulses_are_those_that_are_drawn_at_once(failing: DeviceModel) -> None:
    cells, is_set = torch.arange(N), torch.arange(N) % 2
    fresh = Cells(failing, cells, 7)
    fresh.apply(torch.where(is_set != 0, -2.0, 0.0))
    once = draw_states(failing, is_set.int(), cells, 8)
    for digit in (0, 1):
        ours, theirs = (states[is_set == digit].sort().values for states in (fresh.r, once))
        assert (ours - theirs).abs().mean() < 0.004
    volts = torch.tensor([[0.0, 2.0], [-2.0, 0.0]])
    torch.testing.assert_close(pulse_cells(failing, cells, 7, volts, is_set)[is_set == 1], fresh.r[is_set == 1])


def test_cells_fail_cycle_after_cycle(failing: DeviceModel) -> None:
    fresh = Cells(failing, torch.arange(4000), 3)
    shares = torch.zeros(2)
    for _ in range(10):
        fresh.apply(-2.0)
        shares[0] += in_failure(failing, fresh.r, SET_QUANTILES).float().mean() / 10
        fresh.apply(2.0)
        shares[1] += in_failure(failing, fresh.r, RESET_QUANTILES).float().mean() / 10
    for found, share in zip(shares.tolist(), SHARES, strict=True):
        assert found == pytest.approx(share, abs=4 * math.sqrt(share / 40_000) + 0.002)  # some HRS are as low


@pytest.mark.parametrize("scheme", ["write_verify", "incremental_reset"])
def test_verify_finds_what_failed(failing: DeviceModel, device: DeviceModel, scheme: str) -> None:
    verify = Verify(noise=None)
    config = (
        WriteVerify(scheme="write_verify", verify=verify, tries=6, tolerance=0.1)
        if scheme == "write_verify"
        else IncrementalReset(scheme="incremental_reset", verify=verify)
    )
    digits, cells = torch.ones(6000, dtype=torch.int32), torch.arange(6000)
    with_failures, without = (make_programmer(config, model, 2)(digits, cells, 5) for model in (failing, device))
    assert in_failure(failing, with_failures.r, SET_QUANTILES).float().mean() < SHARES[0] / 3
    assert with_failures.pulses.sum() > without.pulses.sum()


def test_no_draw_is_beyond_its_limits(limited: DeviceModel) -> None:
    features = draw_cycles(limited, torch.arange(N), 3, 4)
    for feature in (HRS, LRS):
        low, high = limited.limits_of(feature)
        y = features[feature].log10()
        assert (y.min(), y.max()) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))
    r = draw_states(limited, (torch.arange(N) % 2).int(), torch.arange(N), 1)
    ends = limited.state_of_resistance(10.0 ** torch.tensor([3.63, 3.68, 4.5, 5.0]))
    assert r[1::2].min() == pytest.approx(ends[0].item(), abs=1e-5)
    assert r[1::2].max() == pytest.approx(ends[1].item(), abs=1e-5)
    assert r[::2].min() == pytest.approx(ends[2].item(), abs=1e-5)
    assert r[::2].max() == pytest.approx(ends[3].item(), abs=1e-5)


def test_a_log10_lrs_is_nearly_the_lrs(limited: DeviceModel, device: DeviceModel) -> None:
    ours, theirs = (
        draw_cycles(m, torch.arange(N), 3, 1)[LRS].flatten()
        for m in (dataclasses.replace(limited, limits=None), device)
    )
    torch.testing.assert_close(ours.median(), theirs.median(), rtol=2e-3, atol=0)
    torch.testing.assert_close(ours.std(), theirs.std(), rtol=0.05, atol=0)


def test_compiled_code_has_the_bits_of_the_definition(limited: DeviceModel) -> None:
    cells, is_set = torch.arange(5000), (torch.arange(5000) % 2).int()
    expected = state_law(limited).states(is_set, random_words(1, cells))
    assert torch.equal(draw_states(limited, is_set, cells, 1), expected)
    for config in (
        WriteVerify(scheme="write_verify", verify=Verify(noise=None)),
        IncrementalReset(scheme="incremental_reset", verify=Verify(noise=None)),
    ):
        programmer = make_programmer(config, limited, 2)
        assert isinstance(programmer, ClosedLoopProgrammer)
        ours, theirs = programmer(is_set, cells, 1), programmer.by_definition(is_set, cells, 1)
        assert torch.equal(ours.r, theirs.r)
        assert torch.equal(ours.pulses, theirs.pulses)


def test_files_keep_the_optional_parts(tmp_path: Path, limited: DeviceModel, device: DeviceModel) -> None:
    whole = dataclasses.replace(limited, failures=FAILURES)
    save_device(whole, tmp_path / "whole.safetensors")
    found = load_device(tmp_path / "whole.safetensors")
    assert torch.equal(found.failures, FAILURES)
    assert torch.equal(found.limits, limited.limits)
    assert found.lrs_is_log10
    save_device(device, tmp_path / "plain.safetensors")
    plain = load_device(tmp_path / "plain.safetensors")
    assert (plain.failures, plain.limits, plain.lrs_is_log10) == (None, None, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limits": torch.tensor([[5.0, 4.0], [-2, -1], [1, 2], [1, 2]])}, "limits are .*must be below the second"),
        ({"failures": torch.tensor([[1.0, 4.0, 5.0], [0.0, 3.0, 4.0]])}, "failures have shares of .*below 1"),
        ({"failures": torch.tensor([[0.1, 5.0, 4.0], [0.0, 3.0, 4.0]])}, "quantiles of log10 ohm that do not fall"),
        ({"failures": torch.tensor([[0.1, 5.0], [0.0, 3.0]])}, "at least two quantiles"),
        ({"failures": torch.tensor([[0.1, 5.0]])}, r"failures has shape \[1, 2\]"),
    ],
)
def test_impossible_parts_are_refused(tmp_path: Path, device: DeviceModel, changes, message: str) -> None:
    save_device(dataclasses.replace(device, **changes), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message):
        load_device(tmp_path / "x.safetensors")


def test_a_scale_of_lrs_that_is_none(tmp_path: Path, device: DeviceModel) -> None:
    save_device(device, tmp_path / "x.safetensors", {"lrs_scale": "ln"})
    with pytest.raises(InputError, match=r"lrs_scale \(metadata\) is ln; it must be log10, or missing for ohm$"):
        load_device(tmp_path / "x.safetensors")
