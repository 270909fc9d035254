"""Standardising, normal scores and monotone polynomials."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import hermite_e

from memsim.device import DeviceModel
from memsim.fit.normalise import (
    LEAST_SLOPE,
    NormalScores,
    _least_squares_above,
    mid_distribution,
    normalised,
    power_series,
    standardise,
)

N = 200_000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_standardised_series_have_no_mean_and_unit_deviation(rng: np.random.Generator) -> None:
    y = (np.array([[5.0], [-2.0]]) + np.array([[0.1], [30.0]]) * rng.standard_normal((2, 1000))).astype(np.float32)
    y[0, 100:300] = np.nan
    own = standardise(y)
    assert np.isnan(own.z).tolist() == np.isnan(y).tolist()
    np.testing.assert_allclose(np.nanmean(own.z, axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(own.z, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(own.mean[:, None] + own.std[:, None] * own.z, y, rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=50))
def test_the_mid_distribution_counts_halves(values: list[int]) -> None:
    different, share = mid_distribution(np.array(values, dtype=np.float32))
    ours = np.array(values)
    for value, below in zip(different, share, strict=True):
        assert below == pytest.approx((ours < value).mean() + (ours == value).mean() / 2)


@pytest.mark.parametrize("feature", range(4))
def test_the_published_polynomials_are_recovered(feature: int, device: DeviceModel, rng: np.random.Generator) -> None:
    """Where the data are, within 5 standard errors of a quantile: sqrt(p (1 - p) / n) / density."""
    gamma = device.gamma[feature].numpy()
    z = np.polyval(gamma, rng.standard_normal(N)).astype(np.float32)
    scores = NormalScores.of(z)
    fitted = power_series(scores.hermite())
    x = np.linspace(-2.3, 2.3, 24)
    error_at_the_edge = np.sqrt(0.01 / N) / 0.027
    assert np.abs(np.polyval(fitted, x) - np.polyval(gamma, x)).max() < 5 * error_at_the_edge + 0.01
    # 0.01: two of the four are not monotone beyond -4.4 and are fitted by ones that are (this has 4 values beyond that)


def test_scores_are_normal_whatever_the_distribution(rng: np.random.Generator) -> None:
    z = rng.gamma(2.0, size=N).astype(np.float32)
    scores = NormalScores.of(z)(z)
    assert scores.mean() == pytest.approx(0, abs=1e-3)
    assert scores.std() == pytest.approx(1, abs=1e-3)
    order = np.argsort(z)
    assert (np.diff(scores[order]) >= 0).all()


def test_scores_of_a_coarse_instrument_are_those_of_the_middle(rng: np.random.Generator) -> None:
    z = rng.standard_normal(N).astype(np.float32)
    coarse = np.round(z * 4) / 4
    scores = NormalScores.of(coarse)(coarse)
    assert scores.mean() == pytest.approx(0, abs=2e-3)
    assert np.abs(scores - coarse)[np.abs(coarse) < 2.5].max() < 0.03


def test_missing_values_have_no_scores() -> None:
    z = np.array([0.0, np.nan, 1.0, 2.0], dtype=np.float32)
    assert np.isnan(NormalScores.of(z)(z)).tolist() == [False, True, False, False]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_polynomials_rise_over_the_range_of_the_data(seed: int) -> None:
    """Of mixtures of two normals, which a free polynomial would often fit with a fold."""
    rng = np.random.default_rng(seed)
    far = rng.random(500) < rng.uniform(0.05, 0.95)
    z = rng.standard_normal(500) * np.where(far, rng.uniform(0.01, 1), 1) + np.where(far, rng.uniform(-5, 5), 0)
    scores = NormalScores.of(z.astype(np.float32))
    slopes = hermite_e.hermeval(scores.x, hermite_e.hermeder(scores.hermite()))
    assert slopes.min() > LEAST_SLOPE - 1e-6


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_bounded_least_squares_is_the_minimum(seed: int) -> None:
    """By the conditions of Karush, Kuhn and Tucker, which for a convex problem hold at the minimum alone."""
    rng = np.random.default_rng(seed)
    matrix, target, rows = rng.standard_normal((20, 3)), rng.standard_normal(20), rng.standard_normal((3, 3))
    found = _least_squares_above(matrix, target, rows, 0.5)  # three independent rows: always feasible
    slack = rows @ found - 0.5
    multipliers = np.linalg.solve(rows.T, 2 * matrix.T @ (matrix @ found - target))
    terms = 2 * (np.abs(matrix.T @ matrix @ found).max() + np.abs(matrix.T @ target).max())
    rounding = np.linalg.cond(rows) * terms
    assert (slack >= -1e-8).all()
    assert (multipliers >= -1e-12 * rounding).all()
    assert (np.abs(multipliers * slack) <= 1e-8 * rounding * (1 + np.abs(rows @ found).max())).all()


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_normalised_polynomials_have_no_mean_and_unit_variance(coefficients: list[float]) -> None:
    hermite = np.array([0.7, 1.0 + abs(coefficients[0]), *coefficients[1:]])
    x, weight = hermite_e.hermegauss(12)
    g = np.polyval(power_series(normalised(hermite)), x)
    assert (weight * g).sum() / weight.sum() == pytest.approx(0, abs=1e-9)
    assert (weight * g * g).sum() / weight.sum() == pytest.approx(1, abs=1e-9)
