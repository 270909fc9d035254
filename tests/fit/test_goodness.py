"""Checks of a fit: a right model passes, and wrong ones are named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from memsim.device import DeviceModel
from memsim.fit import Fit, FitOptions, Goodness, Measurements, fit_model, judge
from memsim.fit import goodness as goodness_
from memsim.fit.goodness import CorrelogramSums, _distribution_checks

ORDER = 4


@pytest.fixture(scope="module", autouse=True)
def fewer_cycles() -> object:
    """Half a million cycles are drawn from the model, not two millions: quick, and enough for 128 devices."""
    patch = pytest.MonkeyPatch()
    patch.setattr(goodness_, "LEAST_GENERATED", 500_000)
    patch.setattr(goodness_, "MOST_GENERATED", 500_000)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def fit(measured: Measurements) -> Fit:
    return fit_model(measured, FitOptions(order=10, components=1))


@pytest.fixture(scope="module")
def good(fit: Fit, measured: Measurements) -> Goodness:
    return judge(fit, measured)


def names(goodness: Goodness) -> set[tuple[str, str]]:
    return {(check.feature, check.quantity) for check in goodness.warnings}


def test_a_right_model_passes(good: Goodness) -> None:
    assert not good.warnings
    assert len(good.checks) == 4 * 8 + 2 + 2 * 2
    assert sum(check.verdict == "pass" for check in good.checks) >= 26


def judged(fit: Fit, measured: Measurements, **changes) -> Goodness:
    return judge(dataclasses.replace(fit, model=dataclasses.replace(fit.model, **changes)), measured)


def changed(tensor: torch.Tensor, row: int, factor: float) -> torch.Tensor:
    result = tensor.clone()
    result[row] *= factor
    return result


def test_a_wrong_mean_is_named(fit: Fit, measured: Measurements) -> None:
    found = names(judged(fit, measured, mixture_means=changed(fit.model.mixture_means, 2, 1.05)))  # LRS
    assert found >= {("LRS", "mean"), ("LRS", "worst quantile, 1 to 99 %"), ("LRS", "distance of distributions (KS)")}
    assert {feature for feature, _ in found} <= {"LRS", "all"}


def test_a_wrong_deviation_is_named(fit: Fit, measured: Measurements) -> None:
    found = names(judged(fit, measured, gamma=changed(fit.model.gamma, 1, 1.3)))  # US
    assert ("US", "deviation, cycle to cycle") in found
    assert {feature for feature, _ in found} <= {"US", "all"}


def test_a_wrong_spread_of_devices_is_named(fit: Fit, measured: Measurements) -> None:
    wide = fit.model.mixture_cholesky.clone()
    wide[:, 3] *= 2  # UR
    assert ("UR", "spread of means, device to device") in names(judged(fit, measured, mixture_cholesky=wide))


def test_a_lost_memory_is_named(fit: Fit, measured: Measurements) -> None:
    noise = torch.linalg.cholesky(
        fit.model.var[1][:, :4] @ fit.model.var[1][:, :4].T  # of a cycle, given the one before
    )
    white = {1: torch.cat([noise, torch.zeros(4, 4)], dim=1)}
    found = names(judged(fit, measured, var=white))
    assert {(name, f"autocorrelation, lag {lag}") for name in ("HRS", "US", "LRS", "UR") for lag in (1, 10)} <= found


def test_a_lost_correlation_is_named(fit: Fit, measured: Measurements) -> None:
    alone = torch.diag_embed(
        (fit.model.mixture_cholesky @ fit.model.mixture_cholesky.mT).diagonal(dim1=1, dim2=2).sqrt()
    )
    found = names(judged(fit, measured, mixture_cholesky=alone))
    assert ("all", "worst correlation, device to device") in found
    # nothing of single features but the tails that offsets and scales make together
    tails = {"worst quantile, 1 to 99 %", "distance of distributions (KS)"}
    assert {quantity for feature, quantity in found if feature != "all"} <= tails


def test_one_cycle_of_each_of_few_cells_is_not_called_wrong_where_it_is_chance() -> None:
    warned = {"right": 0, "wide": 0}
    for seed in range(40):
        generator = np.random.default_rng(seed)
        measured = generator.normal(4.8, 0.2, (200, 1))
        for name, spread in (("right", 0.2), ("wide", 0.3)):
            drawn = generator.normal(4.8, spread, (4000, 1))
            warned[name] += _distribution_checks(0, True, measured, drawn)[1].verdict == "warn"
    assert warned["right"] <= 6
    assert warned["wide"] == 40


def test_verdicts() -> None:
    check = goodness_.Check("LRS", "mean", 100.0, 101.0, 0.01, 0.02, 0.0, True)
    assert check.verdict == "pass"
    assert dataclasses.replace(check, error=-0.03).verdict == "warn"
    assert dataclasses.replace(check, error=-0.03, standard_error=0.011).verdict == "noise"
    assert dataclasses.replace(check, error=-0.04, standard_error=0.011).verdict == "warn"
    spread = dataclasses.replace(check, standard_error=0.2, most=0.25)
    assert dataclasses.replace(spread, error=0.2).verdict == "noise"
    assert dataclasses.replace(spread, error=0.5).verdict == "warn"  # half off is no sampling error


def test_curves_of_the_report(good: Goodness, measured: Measurements) -> None:
    for distribution in good.distributions:
        width = np.diff(distribution.edges)
        assert (distribution.measured_density * width).sum() == pytest.approx(1)
        own = measured.y[distribution.feature]
        assert distribution.measured_quantiles[66] == pytest.approx(np.median(own), rel=1e-3)
    assert good.series is not None
    assert good.series.measured_correlogram.mean.shape == (101, 4, 4)
    np.testing.assert_allclose(good.series.measured_correlogram.mean[0].diagonal(), 1, rtol=1e-4)
    assert np.abs(good.series.measured_device_correlations).max() <= 1 + 1e-12


@pytest.mark.slow
def test_a_coarse_instrument_is_no_fault(fit: Fit, measured: Measurements) -> None:
    """US in steps of 20 mV, a third of its deviation."""
    y = measured.y.copy()
    y[1] = np.round(y[1] / 0.02) * 0.02
    rounded = dataclasses.replace(measured, y=y)
    goodness = judge(fit_model(rounded, FitOptions(components=1)), rounded)
    assert not goodness.warnings
    edges = goodness.distributions[1].edges
    assert np.allclose(np.diff(edges), 0.02, atol=1e-5)
    assert np.allclose(edges / 0.02 % 1, 0.5, atol=1e-3)


def test_the_correlogram_by_fft_is_the_sum_over_pairs() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((3, 70, 40)).astype(np.float32)
    z[rng.random(z.shape) < 0.2] = np.nan
    sums = CorrelogramSums(3, 5)
    sums.add(z[:, :50])
    sums.add(z[:, 50:])
    found = sums.correlogram()
    for lag in range(6):
        now, before = z[:, :, lag:], z[:, :, : 40 - lag]
        for i in range(3):
            for j in range(3):
                products = now[i] * before[j]
                assert found.mean[lag, i, j] == pytest.approx(np.nanmean(products), abs=1e-5)
                own = np.nanmean(products, axis=1)
                assert found.standard_error[lag, i, j] == pytest.approx(own.std() / np.sqrt(70), rel=0.1)


def test_measured_gaps_are_those_of_the_drawn_cells(fit: Fit, measured: Measurements, device: DeviceModel) -> None:
    y = measured.y.copy()
    y[:, ::2, 200:] = np.nan  # every other device is short
    holes = dataclasses.replace(measured, y=y)
    goodness = judge(dataclasses.replace(fit, model=fit.model), holes)
    drawn = next(goodness_._drawn(fit, (0, 1, 2, 3), np.isnan(y), 128, 0))
    assert (np.isnan(drawn) == np.isnan(y)).all()
    assert len(goodness.warnings) <= 2  # the model was fitted to the whole series, of which these are a part
