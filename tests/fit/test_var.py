"""The cycle-to-cycle process: Yule-Walker estimates against known processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.device import DeviceModel
from memsim.device.cycles.cells import draw_variates
from memsim.device.cycles.features import stationary_autocovariances
from memsim.device.cycles.model import companion
from memsim.fit.var import (
    LARGEST_RADIUS,
    autocovariances,
    correlations,
    information_criteria,
    spectral_radius,
    stabilised,
    yule_walker,
)


@pytest.mark.parametrize("order", [1, 4, 10])
def test_yule_walker_inverts_the_autocovariances(order: int, device: DeviceModel) -> None:
    """Of each published process, exactly."""
    exact = stationary_autocovariances(device, order, order).numpy()
    np.testing.assert_allclose(yule_walker(exact, order), device.var[order].numpy(), atol=1e-9)


def test_lower_orders_are_fitted_anew(device: DeviceModel) -> None:
    """The published process of order 1 is that of the process of order 10 at lag 1, not its last A."""
    exact = stationary_autocovariances(device, 10, 10).numpy()
    np.testing.assert_allclose(yule_walker(exact, 1), device.var[1].numpy(), atol=2e-3)


def test_autocovariances_are_those_of_the_process(device: DeviceModel) -> None:
    devices, cycles, lags = 300, 400, 3
    x = draw_variates(device, torch.arange(devices), 1, cycles).numpy()
    exact = stationary_autocovariances(device, lags).numpy()
    assert np.abs(autocovariances(x, lags) - exact).max() < _five_errors(device, devices * cycles)


def _five_errors(device: DeviceModel, samples: int) -> float:
    """Five standard errors of an autocovariance of the slowest feature (Bartlett): sum of squares over all lags."""
    square = float(np.square(stationary_autocovariances(device, 300).numpy()[1:, 2, 2]).sum())
    return 5 * float(np.sqrt(2 * (1 + 2 * square) / samples))


def test_gaps_leave_them_unbiased(device: DeviceModel) -> None:
    devices, cycles, lags = 300, 400, 3
    x = draw_variates(device, torch.arange(devices), 1, cycles).numpy()
    x[np.random.default_rng(0).random(x.shape) < 0.3] = np.nan
    exact = stationary_autocovariances(device, lags).numpy()
    assert np.abs(autocovariances(x, lags) - exact).max() < _five_errors(device, devices * cycles) / 0.7


def test_autocovariances_by_hand() -> None:
    x = np.array([[[1.0, 2.0, np.nan, 4.0]], [[1.0, 0.0, 3.0, 1.0]]])
    found = autocovariances(x, 1)
    np.testing.assert_allclose(found[0], [[(1 + 4 + 16) / 3, (1 + 0 + 4) / 3], [(1 + 0 + 4) / 3, (1 + 0 + 9 + 1) / 4]])
    # [i, j]: x_i now with x_j one before
    np.testing.assert_allclose(found[1], [[2 / 1, (2 * 1 + 4 * 3) / 2], [(0 * 1 + 3 * 2) / 2, (0 + 0 + 3) / 3]])


def random_autocovariances(seed: int, lags: int, features: int = 4) -> np.ndarray:
    """Of a short random series: those of no process at all, when divided by the number of pairs."""
    x = np.random.default_rng(seed).standard_normal((features, 1, lags + 6)).cumsum(axis=2)
    return correlations(autocovariances(x, lags))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_whatever_is_given_becomes_stationary(seed: int, order: int) -> None:
    stable, white = stabilised(random_autocovariances(seed, order), order)
    assert 0 <= white <= 1
    for p in range(1, order + 1):
        var = yule_walker(stable, p)
        assert spectral_radius(var) <= LARGEST_RADIUS
        assert (np.diagonal(var[:, :4]) > 0).all()
        assert not np.triu(var[:, :4], 1).any()


def test_what_is_stationary_stays_as_it_is(device: DeviceModel) -> None:
    exact = stationary_autocovariances(device, 10).numpy()
    stable, white = stabilised(exact, 10)
    assert white == 0
    np.testing.assert_array_equal(stable, exact)


def test_white_noise_is_mixed_in_no_more_than_needed() -> None:
    """A process of radius 1.2 by its autocovariances."""
    exact = np.array([[[1.0]], [[1.1]]])
    stable, white = stabilised(exact, 1)
    assert (1 - white) * 1.1 == pytest.approx(LARGEST_RADIUS, abs=2e-4)
    assert spectral_radius(yule_walker(stable, 1)) == pytest.approx(LARGEST_RADIUS, abs=2e-4)


def test_spectral_radius_is_that_of_the_companion(device: DeviceModel) -> None:
    for order, var in device.var.items():
        expected = torch.linalg.eigvals(companion(var)).abs().max().item()
        assert spectral_radius(var.numpy()) == pytest.approx(expected), order


def test_the_bayesian_criterion_finds_the_order(device: DeviceModel) -> None:
    devices, cycles = 200, 1000
    x = draw_variates(device, torch.arange(devices), 5, cycles, order=3).numpy()
    covariances = autocovariances(x, 6)
    criteria = information_criteria({p: yule_walker(covariances, p) for p in range(1, 7)}, devices * cycles)
    assert min(criteria, key=lambda p: criteria[p][1]) == 3
