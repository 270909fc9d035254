"""The goodness of a fit: cells are drawn from the fitted model and compared with the measured ones.

Devices are independent but cycles are not, so the sampling error of every number is estimated from its variation from
device to device. A check passes if the measurements and the model agree within a tolerance, or within three standard
errors of both; a spread that is far off is never within sampling error. The conductances of both states, failures
included, are compared as well: they are what a matrix product sees.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import ndtr

from memsim.device.cycles.cells import draw_cycles
from memsim.device.cycles.model import FAILED_RESET, FAILED_SET, HRS, LRS
from memsim.fit.arrays import Bools, Floats
from memsim.fit.correlogram import Correlogram, CorrelogramSums
from memsim.fit.fit import Fit
from memsim.fit.measurements import NAMES, Measurements, Progress
from memsim.fit.normalise import mid_distribution, standardise
from memsim.rng import derive_seed

Verdict = Literal["pass", "noise", "warn"]

LAGS = 100
CROSS_LAGS = 20
LEAST_GENERATED, MOST_GENERATED = 2_000_000, 12_000_000
"""Bounds of the number of cycles that are drawn from the model, which is four times the number measured."""
PROBABILITIES = ndtr(np.linspace(-3.3, 3.3, 133))
"""Probabilities of the quantiles in figures, 0.05 % to 99.95 %."""
STANDARD_ERRORS = 3.0
_PERCENT = np.arange(1, 100) / 100
_BINS = 60
_DRAWN_AT_ONCE = 500_000
_HISTORY_CYCLES = 10  # that take as long to draw as the history of a device
_KEPT_CYCLES = 1000  # cycles of each device that are kept for distributions

MEAN_TOLERANCE = 0.001  # relative
SPREAD_TOLERANCE = 0.06  # relative
DEVIATION_TOLERANCE = 0.02  # relative
QUANTILE_TOLERANCE = 0.02  # relative, for every quantile from 1 to 99 %
DISTANCE_TOLERANCE = 0.02
CORRELATION_TOLERANCE = 0.01
DEVICE_CORRELATION_TOLERANCE = 0.05
CONDUCTANCE_TOLERANCE = 0.005  # relative, of the mean
MOST_SPREAD_ERROR = 0.25
"""Relative error of a spread from which on no sampling error excuses it."""
MOST_DEVIATION_SPREAD_ERROR = 0.5
"""Relative error of the spread of deviations over devices from which on no sampling error excuses it.

It is larger as most of that spread is the estimation noise of few cycles.
"""


@dataclass(frozen=True)
class Check:
    """A comparison of one number, from the measurements and from the model."""

    feature: str  # "HRS", ..., or "all"
    quantity: str
    measured: float | None
    generated: float | None
    error: float  # generated less measured, divided by `measured` if `is_relative`
    tolerance: float
    standard_error: float
    is_relative: bool
    where: str = ""
    most: float | None = None  # the error from which on the sampling error does not count

    @property
    def verdict(self) -> Verdict:
        """The outcome: `pass`, `noise` (beyond the tolerance but within the sampling error) or `warn`."""
        if abs(self.error) <= self.tolerance:
            return "pass"
        is_noise = abs(self.error) <= STANDARD_ERRORS * self.standard_error
        return "noise" if is_noise and (self.most is None or abs(self.error) < self.most) else "warn"


@dataclass(frozen=True)
class Distribution:
    """The distribution of one feature over all cycles of all devices."""

    feature: int
    is_log10: bool  # whether it is in log10 ohm
    measured_quantiles: Floats  # at PROBABILITIES
    generated_quantiles: Floats
    edges: Floats  # [bins + 1]
    measured_density: Floats  # [bins]
    generated_density: Floats


@dataclass(frozen=True)
class SeriesStatistics:
    """The correlations of the measurements and of the model, over cycles and over devices."""

    measured_correlogram: Correlogram
    generated_correlogram: Correlogram
    measured_device_correlations: Floats = field(repr=False)  # [2F, 2F] over means and deviations of devices
    generated_device_correlations: Floats = field(repr=False)

    def to_dict(self, features: tuple[int, ...]) -> dict[str, Any]:
        """Return the correlations of the `features` as plain values."""
        return {
            "autocorrelation": {
                NAMES[feature]: {
                    "measured": self.measured_correlogram.mean[:, i, i].tolist(),
                    "standard_error": self.measured_correlogram.standard_error[:, i, i].tolist(),
                    "generated": self.generated_correlogram.mean[:, i, i].tolist(),
                }
                for i, feature in enumerate(features)
            },
            "device_correlations": {
                "measured": self.measured_device_correlations.tolist(),
                "generated": self.generated_device_correlations.tolist(),
            },
        }


@dataclass(frozen=True)
class Goodness:
    """The checks of a fit, and the curves for its figures.

    There are no correlograms and correlations where the changes from cycle to cycle are those of the base model.
    """

    checks: tuple[Check, ...]
    features: tuple[int, ...]
    distributions: tuple[Distribution, ...]
    measured_devices: int
    generated_devices: int
    cycles: int
    series: SeriesStatistics | None = None

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.verdict == "warn")

    def to_dict(self) -> dict[str, Any]:
        """Return checks and curves as plain values."""
        return {
            "checks": [dataclasses.asdict(check) | {"verdict": check.verdict} for check in self.checks],
            "warnings": len(self.warnings),
            "devices": {"measured": self.measured_devices, "generated": self.generated_devices},
            "cycles": self.cycles,
            "quantiles": {
                NAMES[d.feature]: {
                    "probability": PROBABILITIES.tolist(),
                    "measured": d.measured_quantiles.tolist(),
                    "generated": d.generated_quantiles.tolist(),
                }
                for d in self.distributions
            },
        } | ({} if self.series is None else self.series.to_dict(self.features))


def judge(
    fit: Fit, measurements: Measurements, *, seed: int = 0, progress: Progress = lambda name, done: None
) -> Goodness:
    """Compare `measurements` with cells drawn from the fitted model, with the same lengths and gaps.

    Args:
        fit: the fitted model.
        measurements: the measurements that it was fitted to.
        seed: seed of the cells that are drawn.
        progress: called with a name and the fraction that is done.
    """
    features = measurements.measured
    y = measurements.modelled(fit.model.lrs_is_log10)[list(features)][:, fit.devices]
    _, devices, cycles = y.shape
    amount = max(min(MOST_GENERATED, 4 * devices * cycles), LEAST_GENERATED, devices * cycles)
    count = -(-amount // max(cycles, _HISTORY_CYCLES))
    drawn = _drawn(fit, features, np.isnan(y), count, seed)
    if fit.options.has_base_cycles:
        series, checks, generated = None, list[Check](), np.concatenate(list(drawn), axis=1)
    else:
        series, checks, generated = _compared_series(features, y, drawn, count, progress)
    pairs = [(feature, fit.model.is_log10(feature), y[i], generated[i]) for i, feature in enumerate(features)]
    checks = [check for pair in pairs for check in _distribution_checks(*pair)] + checks
    for feature, is_log10, *parts in pairs:
        if feature in (HRS, LRS):
            checks += _conductance_checks(fit, measurements, feature, is_log10, parts[0], parts[1], seed)
    checks.sort(key=lambda check: [*NAMES, "all"].index(check.feature))
    distributions = tuple(_distribution(*pair) for pair in pairs)
    progress("judging", 1.0)
    return Goodness(tuple(checks), features, distributions, devices, count, cycles, series)


def _compared_series(
    features: tuple[int, ...], y: Floats, drawn: Iterable[Floats], count: int, progress: Progress
) -> tuple[SeriesStatistics, list[Check], Floats]:
    """Return the correlations, their checks and those of devices, and some cycles of the drawn devices."""
    _, devices, cycles = y.shape
    lags = min(LAGS, cycles // 2)
    measured = _Treated.of([y], lags)
    progress("judging", 0.2)
    generated = _Treated.of(drawn, lags, lambda done: progress("judging", 0.2 + 0.7 * done / count))
    checks = []
    for i, feature in enumerate(features):
        checks += _device_checks(NAMES[feature], measured, generated, i)
    correlograms = measured.correlogram, generated.correlogram
    checks += _lag_checks(features, *correlograms)
    if len(features) > 1:
        names, (own, theirs) = [NAMES[feature] for feature in features], (part.mean[0] for part in correlograms)
        standard_error = np.hypot(*(part.standard_error[0] for part in correlograms))
        what = "cross-correlation, cycle to cycle"
        checks.append(_worst_correlation(what, names, own, theirs, standard_error, CORRELATION_TOLERANCE))
    labels = [f"{kind} {NAMES[feature]}" for kind in ("mean", "std") for feature in features]
    correlations = np.corrcoef(measured.moments), np.corrcoef(generated.moments)
    standard_error = (1 - correlations[0] ** 2) * np.sqrt(1 / devices + 1 / count)
    what = "correlation, device to device"
    checks.append(_worst_correlation(what, labels, *correlations, standard_error, DEVICE_CORRELATION_TOLERANCE))
    return SeriesStatistics(*correlograms, *correlations), checks, generated.y


def _conductance_checks(
    fit: Fit, measurements: Measurements, feature: int, is_log10: bool, measured: Floats, generated: Floats, seed: int
) -> list[Check]:
    """Return the checks of mean and spread of the conductance of a state, over all cycles, failures included."""
    row = FAILED_SET if feature == LRS else FAILED_RESET
    parts = [np.array(10.0**-part if is_log10 else 1 / part, dtype=np.float64) for part in (measured, generated)]
    if fit.model.failures is not None and measurements.failures is not None:
        share, *quantiles = fit.model.failures[row].tolist()
        failed = measurements.failures.log10_ohms[row, fit.devices]
        is_failed = np.isfinite(failed)
        parts[0][is_failed] = 10.0 ** -failed[is_failed]
        rng = np.random.default_rng(derive_seed(seed, "goodness failures", row))
        fails = rng.random(parts[1].shape) < share
        probabilities = np.linspace(0, 1, len(quantiles))
        parts[1][fails] = 10.0 ** -np.interp(rng.random(int(fails.sum())), probabilities, quantiles)
    means, mean_errors, stds, std_errors = [], [], [], []
    for part in parts:
        micro = 1e6 * part
        mean = float(np.nanmean(micro))
        squares = np.nanmean(np.square(micro - mean), axis=1)  # of each device
        std = float(np.sqrt(np.nanmean(np.square(micro - mean))))
        means.append(mean)
        mean_errors.append(float(np.nanmean(micro, axis=1).std() / np.sqrt(len(part))))
        stds.append(std)
        std_errors.append(float(squares.std() / np.sqrt(len(part)) / (2 * std)))
    name = NAMES[feature]
    return [
        _relative(name, "conductance, mean (uS)", means, math.hypot(*mean_errors), CONDUCTANCE_TOLERANCE),
        _relative(name, "conductance, spread (uS)", stds, math.hypot(*std_errors), SPREAD_TOLERANCE, MOST_SPREAD_ERROR),
    ]


def _drawn(fit: Fit, features: tuple[int, ...], gaps: Bools, count: int, seed: int) -> Iterator[Floats]:
    """Draw `count` devices in parts [F, devices, cycles]; each device has the gaps of a measured one."""
    _, devices, cycles = gaps.shape
    key = derive_seed(seed, "goodness")
    for cells in torch.arange(count).split(max(1, _DRAWN_AT_ONCE // cycles)):
        drawn = draw_cycles(fit.model, cells, key, cycles).numpy()
        some = cells.numpy() % devices
        for feature in (HRS, LRS):
            if fit.model.is_log10(feature):
                np.log10(drawn[feature], out=drawn[feature])
        y = drawn[list(features)]
        y[gaps[:, some]] = np.nan
        yield y


@dataclass(frozen=True)
class _Treated:
    """Statistics of measured or drawn series."""

    y: Floats  # [F, devices, some cycles]
    moments: Floats  # [2F, devices] means and standard deviations over all cycles
    correlogram: Correlogram

    @classmethod
    def of(cls, parts: Iterable[Floats], lags: int, done: Callable[[int], None] = lambda devices: None) -> _Treated:
        """Compute the statistics of `parts` [F, devices, cycles], each of other devices."""
        kept, moments, sums, devices = [], [], None, 0
        for y in parts:
            own = [standardise(series) for series in y]
            moments.append(np.stack([part.mean for part in own] + [part.std for part in own]))
            sums = sums or CorrelogramSums(len(y), lags)
            sums.add(np.stack([part.z for part in own]))
            kept.append(y[:, :, :: -(-y.shape[2] // _KEPT_CYCLES)])
            done(devices := devices + y.shape[1])
        assert sums is not None
        return cls(np.concatenate(kept, axis=1), np.concatenate(moments, axis=1), sums.correlogram())


def _distribution(feature: int, is_log10: bool, measured: Floats, generated: Floats) -> Distribution:
    """Return the distribution of one feature [devices, cycles]."""
    own, theirs = (_quantiles(part, PROBABILITIES) for part in (measured, generated))
    edges = _edges(measured, min(own[0], theirs[0]), max(own[-1], theirs[-1]))
    densities = (np.histogram(part, edges, density=True)[0] for part in (measured, generated))
    return Distribution(feature, is_log10, own, theirs, edges, *densities)


def _distribution_checks(feature: int, is_log10: bool, *parts: Floats) -> tuple[Check, Check]:
    """Return the checks of one feature's distribution; its `parts` [devices, cycles] are measured and generated."""
    name = NAMES[feature]
    different, share = mid_distribution(parts[0])
    places = np.searchsorted(share, _PERCENT).clip(max=len(different) - 1)  # the last step may be several percent
    at = different[places]  # measured values, which are steps if the instrument is coarse
    shares = [_shares_below(part, at) for part in parts]  # [devices, 99] each
    error_of_share = np.sqrt(sum(np.nanvar(part, axis=0) / len(part) for part in shares))
    distances = np.nanmean(shares[1], axis=0) - np.nanmean(shares[0], axis=0)
    worst = int(np.abs(distances).argmax())
    where, error, standard_error = f"at {_PERCENT[worst]:.0%}", float(distances[worst]), float(error_of_share[worst])
    what = "distance of distributions (KS)"
    distance = Check(name, what, None, None, error, DISTANCE_TOLERANCE, standard_error, False, where)
    at, other = (_quantiles(part, _PERCENT) for part in parts)
    # a quantile is as uncertain as those at shares of so many standard errors beside it are far, and more so beyond all
    beside = _PERCENT + np.sign(other - at) * STANDARD_ERRORS * error_of_share
    reach = np.where((beside < share[0]) | (beside > share[-1]), np.ptp(different), 0.0)
    standard = (np.abs(np.interp(beside, share, different) - at) + reach) / STANDARD_ERRORS
    if is_log10:
        relative, standard = 10 ** (other - at) - 1, np.log(10) * standard
        at, other = 10**at, 10**other
    else:
        relative, standard = (other - at) / np.abs(at), standard / np.abs(at)
    worst = int((np.abs(relative) / np.maximum(QUANTILE_TOLERANCE, STANDARD_ERRORS * standard)).argmax())
    own, theirs, error, standard_error = (float(values[worst]) for values in (at, other, relative, standard))
    what, where = "worst quantile, 1 to 99 %", f"at {_PERCENT[worst]:.0%}"
    return distance, Check(name, what, own, theirs, error, QUANTILE_TOLERANCE, standard_error, True, where)


def _edges(values: Floats, low: float, high: float) -> Floats:
    """Return the edges of bins from `low` to `high`, each a whole number of steps wide if the instrument is coarse."""
    width = (high - low) / _BINS
    different = np.unique(values[np.isfinite(values)])
    step = float(np.median(np.diff(different))) if len(different) > 1 else 0.0
    if step * _BINS > width:
        width = step * np.ceil(width / step)
        low = float(different[np.searchsorted(different, low)]) - step / 2
    return low + width * np.arange(np.ceil((high - low) / width) + 1)


def _quantiles(values: Floats, probabilities: Floats) -> Floats:
    different, share = mid_distribution(values)
    return np.interp(probabilities, share, different)


def _shares_below(values: Floats, at: Floats) -> Floats:
    """Return the share [devices, n] of each device's cycles below each of `at` [n], plus half of the equal ones."""
    result = np.empty((len(values), len(at)))
    for row, series in zip(result, values, strict=True):
        present = np.sort(series[np.isfinite(series)])
        below = np.searchsorted(present, at) + np.searchsorted(present, at, side="right")
        row[:] = below / (2 * max(len(present), 1))
    return result


def _device_checks(name: str, measured: _Treated, generated: _Treated, i: int) -> list[Check]:
    """Return the checks of a feature's mean and standard deviation, and of their spread over devices."""
    means, spreads = [], []
    for row, kind, of, tolerance in (
        (i, "mean", "means", MEAN_TOLERANCE),
        (len(measured.y) + i, "deviation, cycle to cycle", "deviations", DEVIATION_TOLERANCE),
    ):
        pair = measured.moments[row], generated.moments[row]
        error = np.sqrt(sum(part.var() / part.size for part in pair))
        values = [float(part.mean()) for part in pair]
        means.append(_relative(name, kind, values, float(error), tolerance, None if row == i else MOST_SPREAD_ERROR))
        error, spread = np.sqrt(sum(map(_variance_of_std, pair))), [float(part.std(ddof=1)) for part in pair]
        kind, most = f"spread of {of}, device to device", MOST_SPREAD_ERROR if row == i else MOST_DEVIATION_SPREAD_ERROR
        spreads.append(_relative(name, kind, spread, float(error), SPREAD_TOLERANCE, most))
    return means + spreads


def _variance_of_std(values: Floats) -> float:
    """Return the variance of a sample's standard deviation, from its kurtosis (delta method)."""
    centred = values - values.mean()
    variance = float(np.square(centred).mean())
    kurtosis = float((centred**4).mean()) / variance**2
    return variance * (kurtosis - 1) / (4 * values.size)


def _relative(
    name: str, quantity: str, values: list[float], standard_error: float, tolerance: float, most: float | None = None
) -> Check:
    size = abs(values[0])
    error = (values[1] - values[0]) / size
    return Check(name, quantity, values[0], values[1], error, tolerance, standard_error / size, True, most=most)


def _lag_checks(features: tuple[int, ...], measured: Correlogram, generated: Correlogram) -> list[Check]:
    checks = []
    for i, feature in enumerate(features):
        for lag in (1, 10):
            if lag < len(measured.mean):
                own, theirs = (float(part.mean[lag, i, i]) for part in (measured, generated))
                error = float(np.hypot(measured.standard_error[lag, i, i], generated.standard_error[lag, i, i]))
                quantity = f"autocorrelation, lag {lag}"
                checks.append(
                    Check(NAMES[feature], quantity, own, theirs, theirs - own, CORRELATION_TOLERANCE, error, False)
                )
    return checks


def _worst_correlation(
    quantity: str, labels: list[str], measured: Floats, generated: Floats, standard_error: Floats, tolerance: float
) -> Check:
    """Return the check of the pair whose error is largest in relation to the allowed error."""
    error = generated - measured
    excess = np.abs(error) / np.maximum(tolerance, STANDARD_ERRORS * standard_error)
    i, j = max(combinations(range(len(labels)), 2), key=lambda pair: float(excess[pair]))
    own, theirs, difference, noise = (float(part[i, j]) for part in (measured, generated, error, standard_error))
    where = f"{labels[i]} and {labels[j]}"
    return Check("all", f"worst {quantity}", own, theirs, difference, tolerance, noise, False, where)
