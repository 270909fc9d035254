"""States after one pulse: compiled code against its definition in torch operations, bit by bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.device import DeviceModel, draw_states, load_device
from memsim.device.cycles import compiled
from memsim.device.cycles.features import History, component_bounds, draw_components, state_law
from memsim.device.cycles.programming import SinglePulseProgrammer
from memsim.hardware import SinglePulse
from memsim.portable import elementwise

DEVICE = load_device("synaptogen")


def with_components(weights: list[float]) -> DeviceModel:
    """The shipped device with as many components as `weights`, which are different from each other."""
    which = torch.arange(len(weights)) % 3
    shift = 1 + 0.01 * torch.arange(len(weights), dtype=torch.float64)
    return dataclasses.replace(
        DEVICE,
        mixture_weights=torch.tensor(weights, dtype=torch.float64) / sum(weights),
        mixture_means=DEVICE.mixture_means[:, which] * shift,
        mixture_cholesky=DEVICE.mixture_cholesky[which],
    )


DEVICES = [with_components(weights) for weights in ([1.0], [0.0, 0.2, 0.8, 0.0], [1.0, 2.0, 3.0, 4.0, 5.0])] + [DEVICE]


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(DEVICES),
    st.sampled_from(["stationary", "zero"]),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**40),
    st.integers(1, 3000),
)
def test_compiled_states_have_the_bits_of_the_definition(
    device: DeviceModel, history: History, key: int, first: int, n: int
) -> None:
    cells = first + 7 * torch.arange(n).flip(0)
    mask = cells % 3 == 0
    expected = state_law(device, history).states(mask, elementwise.random_words(key, cells))
    drawn = draw_states(device, mask, cells, key, history)
    assert torch.equal(drawn.view(torch.int32), expected.view(torch.int32))
    assert torch.equal(draw_states(device, mask.int(), cells, key, history), drawn)


def test_states_far_out_have_the_bits_of_the_definition() -> None:
    """The states of the words at which the normals are largest, which no few draws reach."""
    far = torch.tensor([0, 255, 256, 257, 1 << 31, (1 << 32) - 1])
    radius, angle = torch.cartesian_prod(far, far).T
    component = (radius * 977) % (1 << 32)
    law = state_law(DEVICE)
    for value in (True, False):
        mask = torch.full((len(radius),), value)
        expected = law.states(mask, (component, radius, angle, angle))
        r = torch.empty(len(radius))
        words = [part.int().numpy().view("uint32") for part in (component, radius, angle)]
        x, z = torch.empty(2, len(radius)).numpy()
        compiled._limit(words[1], law.compiled_arguments.least_radius_word)
        compiled.normal_pairs(x, z, words[1], words[2])
        compiled._states(r.numpy(), mask.numpy(), words[0], x, z, law.compiled_arguments)
        assert torch.equal(r, expected)
        assert r.isfinite().all()


def test_components_have_their_weights() -> None:
    device = DEVICES[1]
    assert component_bounds(device) == (0, round(0.2 * 2**32), 2**32 - 1)
    words = torch.tensor([0, round(0.2 * 2**32) - 1, round(0.2 * 2**32), 2**32 - 2])
    assert draw_components(device, words).tolist() == [1, 1, 2, 2]
    assert component_bounds(DEVICES[0]) == ()


@given(st.integers(0, 2**63 - 1), st.integers(1, 300))
def test_compiled_outcomes_have_the_bits_of_the_definition(key: int, n: int) -> None:
    programmer = SinglePulseProgrammer(SinglePulse(), DEVICE)
    digits = (torch.arange(n) % 2).int()
    outcome = programmer(digits, torch.arange(n), key)
    expected = programmer.outcome_by_definition(digits, outcome.r)
    for field in dataclasses.fields(outcome):
        ours, theirs = getattr(outcome, field.name), getattr(expected, field.name)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("n", [0, 1, 1024, 1025])
def test_any_number_of_cells(n: int) -> None:
    assert draw_states(DEVICE, torch.ones(n, dtype=torch.bool), torch.arange(n), 1).shape == (n,)
