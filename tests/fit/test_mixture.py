"""The device mixture, and the removal of noise from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.fit.mixture import LEAST_SHARE, fit_mixture, less_noise

from .conftest import moments

NO_NOISE = np.zeros((4, 4))


def population(rng: np.random.Generator, devices: int) -> np.ndarray:
    """[4, devices] (two offsets, two scales) of two kinds of devices, three quarters and one quarter."""
    first = rng.random(devices) < 0.75
    location = np.where(first, np.array([[5.0], [-1.0], [0.2], [3.0]]), np.array([[5.5], [-2.0], [0.3], [3.2]]))
    return location + np.array([[0.1], [0.05], [0.02], [0.1]]) * rng.standard_normal((4, devices))


def test_components_are_found_and_chosen() -> None:
    points = population(np.random.default_rng(1), 800)
    mixture = fit_mixture(points, NO_NOISE, None, seed=0)
    assert list(mixture.bic) == [1, 2, 3, 4, 5, 6]
    assert len(mixture.weights) == 2 == min(mixture.bic, key=lambda k: mixture.bic[k])
    # 4 standard errors: of a share of 800, and of means of 600 and 200 devices
    assert mixture.weights[0] == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 800))
    errors = np.abs(mixture.means - np.array([[5.0, 5.5], [-1, -2], [0.2, 0.3], [3.0, 3.2]]))
    assert (errors < 4 * np.array([[0.1], [0.05], [0.02], [0.1]]) / np.sqrt([600, 200])).all()


def test_moments_of_the_mixture_are_those_of_the_devices() -> None:
    points = population(np.random.default_rng(2), 500)
    for components in (1, 3):
        mixture = fit_mixture(points, NO_NOISE, components, seed=0)
        mean, covariance = moments(mixture)
        np.testing.assert_allclose(mean, points.mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(covariance, np.cov(points, bias=True), rtol=1e-2, atol=1e-5)


def test_estimation_noise_is_taken_out() -> None:
    """Noise of a known covariance, in units of each device's own scales, as large as the spread itself."""
    rng, devices = np.random.default_rng(3), 4000
    mean, std = np.array([5.0, -1.0, 0.2, 3.0]), np.array([0.1, 0.5, 0.01, 0.2])
    truth = mean[:, None] + std[:, None] * rng.standard_normal((4, devices))
    noise = np.diag([0.5, 0.15, 0.04, 0.05]) ** 2
    noise[0, 2] = noise[2, 0] = 0.5 * 0.5 * 0.04
    scales = truth[[2, 3, 2, 3]]
    estimates = truth + scales * (np.linalg.cholesky(noise) @ rng.standard_normal((4, devices)))
    mixture = fit_mixture(estimates, noise, 1, seed=0)
    _, covariance = moments(mixture)
    spread = np.sqrt(covariance.diagonal())
    # 5 standard errors of a deviation, of an observed variance that is up to twice as large
    np.testing.assert_allclose(spread, std, rtol=5 * 2 / np.sqrt(2 * devices))
    added = noise.diagonal() * (np.square(mean) + np.square(std))[[2, 3, 2, 3]]
    np.testing.assert_allclose(mixture.noise_share, added / (added + np.square(std)), rtol=0.1)
    assert abs(covariance[0, 2]) < 5 * 0.1 * 0.01 * 2 / np.sqrt(devices)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 3))
def test_what_is_left_is_a_covariance_between_the_bound_and_all(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((2, 4, 6))
    observed, noise = roots[0] @ roots[0].T, size * roots[1] @ roots[1].T
    left = less_noise(observed, noise)
    assert np.linalg.eigvalsh(left - LEAST_SHARE * observed).min() > -1e-8
    assert np.linalg.eigvalsh(observed - left).min() > -1e-8
    if np.linalg.eigvalsh((1 - LEAST_SHARE) * observed - noise).min() > 0:
        np.testing.assert_allclose(left, observed - noise, rtol=1e-6, atol=1e-8)


def test_few_devices_get_few_components() -> None:
    rng = np.random.default_rng(6)
    tried = [list(fit_mixture(rng.standard_normal((2, n)), np.zeros((2, 2)), None, 0).bic) for n in (16, 31, 32, 1000)]
    assert [max(counts) for counts in tried] == [1, 1, 2, 6]


def test_negative_scales_are_counted() -> None:
    rng = np.random.default_rng(5)
    points = np.stack([rng.standard_normal(4000), 1 + rng.standard_normal(4000)])
    (share,) = fit_mixture(points, np.zeros((2, 2)), 1, seed=0).negative_scales()
    assert share == pytest.approx(0.159, abs=0.02)
