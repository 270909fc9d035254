"""Compiled schemes: the bits of the torch operations that define them, whatever the cells beside a cell."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.device import DeviceModel, load_device
from memsim.device.cycles.compiled_schemes import BLOCK
from memsim.device.cycles.programming import (
    ClosedLoopProgrammer,
    Outcome,
    make_programmer,
)
from memsim.hardware import IncrementalReset, Noise, Verify, VerifyAdc, WriteVerify

DEVICE = load_device("synaptogen")  # for Hypothesis, which does not go with fixtures
KEYS = st.integers(0, 2**63 - 1)
VERIFIES = st.builds(
    Verify,
    noise=st.none() | st.builds(Noise, shot_scale=st.sampled_from([0.0, 1.0, 30.0])),
    adc=st.none() | st.builds(VerifyAdc, bits=st.integers(4, 10)),
)
HISTORIES = st.sampled_from(["stationary", "zero"])
WRITE_VERIFIES = st.builds(
    WriteVerify,
    scheme=st.just("write_verify"),
    verify=VERIFIES,
    history=HISTORIES,
    tolerance=st.floats(0.005, 0.1),
    tries=st.integers(1, 6),
)
INCREMENTAL_RESETS = st.builds(
    IncrementalReset,
    scheme=st.just("incremental_reset"),
    verify=VERIFIES,
    history=HISTORIES,
    start_volts=st.floats(0.4, 0.8),
    step_volts=st.floats(0.002, 0.3),
    stop_volts=st.floats(0.8, 1.6),
    tolerance=st.floats(0.005, 0.1),
    retries=st.integers(0, 4),
)


def programmer_of(
    config: WriteVerify | IncrementalReset, levels: int, device: DeviceModel = DEVICE
) -> ClosedLoopProgrammer:
    programmer = make_programmer(config, device, levels)
    assert isinstance(programmer, ClosedLoopProgrammer)
    return programmer


def assert_same(outcome: Outcome, expected: Outcome) -> None:
    for name, values in vars(expected).items():
        assert torch.equal(getattr(outcome, name), values), name


@lru_cache(maxsize=4)
def mixed_device(components: int) -> DeviceModel:
    """The shipped device with its mixture made of so many of its components, some of them shifted."""
    index = torch.arange(components) % len(DEVICE.mixture_weights)
    means = DEVICE.mixture_means[:, index] * (1 + 0.01 * torch.arange(components, dtype=torch.float64))
    weights = DEVICE.mixture_weights[index]
    return dataclasses.replace(
        DEVICE,
        mixture_weights=weights / weights.sum(),
        mixture_means=means,
        mixture_cholesky=DEVICE.mixture_cholesky[index],
    )


@settings(max_examples=40)
@given(WRITE_VERIFIES, KEYS, st.integers(0, 2**62), st.integers(1, 2 * BLOCK))
def test_write_verify_has_the_bits_of_its_definition(config: WriteVerify, key: int, first: int, n: int) -> None:
    programmer, cells = programmer_of(config, 2), first + torch.arange(n)
    digits = (cells % 2).int()
    assert_same(programmer(digits, cells, key), programmer.by_definition(digits, cells, key))


@settings(max_examples=40)
@given(INCREMENTAL_RESETS, st.integers(1, 4), KEYS, st.integers(0, 2**62), st.integers(1, 2 * BLOCK))
def test_incremental_reset_has_the_bits_of_its_definition(
    config: IncrementalReset, cell_bits: int, key: int, first: int, n: int
) -> None:
    programmer, cells = programmer_of(config, 1 << cell_bits), first + torch.arange(n)
    digits = (cells % (1 << cell_bits)).int()
    assert_same(programmer(digits, cells, key), programmer.by_definition(digits, cells, key))


SCHEMES = {
    "write_verify": WriteVerify(scheme="write_verify"),
    "incremental_reset": IncrementalReset(scheme="incremental_reset", tolerance=0.005),
}


@pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("components", [1, 4])
def test_a_mixture_may_have_any_number_of_components(config: WriteVerify | IncrementalReset, components: int) -> None:
    programmer, cells = programmer_of(config, 2, mixed_device(components)), torch.arange(2000)
    digits = (cells % 2).int()
    assert_same(programmer(digits, cells, 1), programmer.by_definition(digits, cells, 1))


@pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)
def test_a_cell_is_programmed_as_it_would_be_alone(config: WriteVerify | IncrementalReset) -> None:
    programmer, cells = programmer_of(config, 2), torch.arange(3 * BLOCK)
    digits = (cells % 2).int()
    whole = programmer(digits, cells, 1)
    assert whole.verify_reads.unique().numel() > 2
    shuffled = torch.randperm(len(cells), generator=torch.Generator().manual_seed(1))[: 2 * BLOCK + 7]
    part = programmer(digits[shuffled], cells[shuffled], 1)
    assert_same(part, Outcome(**{name: values[shuffled] for name, values in vars(whole).items()}))


@pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)
def test_no_cells_are_programmed_at_once(config: WriteVerify | IncrementalReset) -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert programmer_of(config, 2)(none.int(), none, 1).r.shape == (0,)
