"""The fit of a device model: offsets, scales, polynomials, the cycle-to-cycle process and the device mixture.

The polynomials and the process are corrected for the bias of short series, which is measured on a twin (see `twin`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from memsim.device import DeviceModel
from memsim.device.cycles.features import stationary_autocovariances
from memsim.device.cycles.model import LRS
from memsim.errors import InputError
from memsim.fit.arrays import Floats, Ints
from memsim.fit.base import load_base
from memsim.fit.base_cycles import base_cycles
from memsim.fit.envelopes import Envelopes, envelopes
from memsim.fit.measurements import NAMES, Measurements, Progress
from memsim.fit.mixture import DEVICES_PER_COMPONENT, Mixture, fit_mixture, mixture_moments
from memsim.fit.normalise import normalised, power_series
from memsim.fit.possible import require_usable, with_limits
from memsim.fit.twin import Statistics, Twin
from memsim.fit.var import (
    correlations,
    information_criteria,
    spectral_radius,
    stabilised,
    yule_walker,
)
from memsim.rng import derive_seed
from memsim.units import counted

LEAST_CYCLES = 20
CYCLES_PER_ORDER = 5
"""A device must have this many cycles for each order of the process, and at least LEAST_CYCLES."""
SAMPLES_PER_ORDER = 200
"""The devices together must have this many cycles for each order: 50 for each coefficient of a feature."""
MOST_NOISE = 0.5
"""Share of the variance over devices that may be estimation noise before a note says so."""
WIDE_SPREAD = 0.2
"""Relative standard deviation of LRS from which on it is modelled in log10 ohm: a Gaussian would reach 0 ohm."""
_ROUNDS = 12
_CONVERGED = 5e-4


@dataclass(frozen=True)
class FitOptions:
    """The options of `fit_model`.

    Attributes:
        order: order of the cycle-to-cycle process; all lower orders are stored, too.
        components: number of components of the device mixture; None chooses by the Bayesian information criterion.
        base: name or file of the device model that supplies whatever was not measured.
        reset_full_volts: Umax, the voltage at which a RESET is complete, in place of the fitted or the base model's.
        linear_lrs: whether LLRS(U) is a straight line.
        seed: seed of the twins and of the mixture's initialisation.
        name: name of the fitted model.
        has_base_cycles: whether the changes from cycle to cycle are those of the base model (`--from-base cycles`).
    """

    order: int = 10
    components: int | None = None
    base: str = "synaptogen"
    reset_full_volts: float | None = None
    linear_lrs: bool = False
    seed: int = 0
    name: str = "device"
    has_base_cycles: bool = False


@dataclass(frozen=True)
class Fit:
    """A fitted device model with its intermediate results."""

    model: DeviceModel
    options: FitOptions
    devices: Ints  # [devices] indices of the devices that were fitted
    mixture: Mixture  # over the measured features
    envelopes: Envelopes
    criteria: dict[int, tuple[float, float]]  # order -> (AIC, BIC) for each cycle
    spectral_radius: float  # of the process of the highest order
    rounds: int  # rounds of the bias correction
    notes: tuple[str, ...]  # remarks and warnings for the user

    def facts(self, measurements: Measurements) -> dict[str, Any]:
        """Return the measurements, the options and the versions of the fit as plain values."""
        layout = measurements.layout
        return {
            "measurements": measurements.path.name,
            "sha256": measurements.sha256,
            "kind": layout.kind,
            "rows": measurements.rows,
            "columns": {quantity: column.name for quantity, column in layout.columns.items()},
            "devices": len(self.devices),
            "cycles": {NAMES[i]: int(measurements.counts[i, self.devices].sum()) for i in measurements.measured},
            "options": dataclasses.asdict(self.options) | {"base": Path(self.options.base).name},
            "envelopes": self.envelopes.source,
            "notes": list(self.notes),
            "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "scikit-learn": version("scikit-learn")},
        }


def fit_model(
    measurements: Measurements, options: FitOptions | None = None, progress: Progress = lambda name, done: None
) -> Fit:
    """Fit a device model to `measurements`.

    The model is the one of Hennen et al., Front. Neurosci. 16:941753, 2022: y = mu + sigma g(x), where x is a vector
    autoregressive process over cycles, g a polynomial for each feature, and (mu, sigma) of a device come from a
    Gaussian mixture.

    Args:
        measurements: the features of all devices and cycles.
        options: the options; by default those of `FitOptions()`.
        progress: called with a name and the fraction that is done.

    Raises:
        InputError: for values that the model cannot represent (wrong signs, constant features) and for too few
            devices or cycles.
    """
    options = options or FitOptions()
    base = load_base(options.base)
    notes = [*measurements.notes, *(measurements.failures.notes() if measurements.failures else [])]
    devices = _usable(measurements, options, notes)
    measured = list(measurements.measured)
    lrs_is_log10 = _is_wide(measurements) if LRS in measured else base.lrs_is_log10
    y = measurements.modelled(lrs_is_log10)[measured][:, devices]
    counts = measurements.counts[measured][:, devices]
    curves = envelopes(measurements, base, options.linear_lrs)
    if options.reset_full_volts is not None:
        curves = dataclasses.replace(curves, reset_full_volts=options.reset_full_volts)
    base = dataclasses.replace(base, lrs_is_log10=lrs_is_log10, limits=None, failures=None)
    progress("fitting", 0.2)
    if options.has_base_cycles:
        cycle_model, mixture = base_cycles(y, measured, load_base(options.base), lrs_is_log10)
        cycle_model, rounds = curves.on(cycle_model), 0
        notes.append(_base_cycles_note(measurements, cycle_model))
    else:
        statistics = Statistics.of(y, options.order)
        cycle_model, twin, rounds = _corrected(statistics, y, measured, curves.on(base), options, notes, progress)
        estimates = np.concatenate([statistics.mean, statistics.std / twin.scale_bias[:, None]])
        mixture = fit_mixture(estimates, twin.noise, options.components, derive_seed(options.seed, "mixture"))
    _note_mixture(mixture, measured, notes)
    weights, means, cholesky = _with_base_devices(mixture, measured, cycle_model)
    model = dataclasses.replace(
        cycle_model,
        name=options.name,
        mixture_weights=torch.from_numpy(weights),
        mixture_means=torch.from_numpy(means),
        mixture_cholesky=torch.from_numpy(cholesky),
        source=(
            f"memsim fit-device: {measurements.path.name} (sha256 {measurements.sha256[:16]}), "
            f"{counted(len(devices), 'device')}, {counted(int(counts.max(axis=0).sum()), 'cycle')}"
        ),
        licence=base.licence if curves.error is None or len(measured) < 4 else "",
    )
    table = measurements.failures.table() if measurements.failures else None
    model = dataclasses.replace(
        with_limits(model, measurements, notes), failures=None if table is None else torch.from_numpy(table)
    )
    require_usable(model, measurements, notes)
    var = {order: matrix.numpy() for order, matrix in model.var.items()}
    progress("fitting", 1.0)
    return Fit(
        model,
        options,
        devices,
        mixture,
        curves,
        information_criteria(var, int(counts.min(axis=0).sum())),
        spectral_radius(var[model.order]),
        rounds,
        tuple(notes),
    )


def _is_wide(measurements: Measurements) -> bool:
    """Return whether LRS scatters so much that it is modelled in log10 ohm."""
    values = measurements.y[LRS][np.isfinite(measurements.y[LRS])].astype(np.float64)
    return bool(len(values) and values.std() > WIDE_SPREAD * values.mean())


def _base_cycles_note(measurements: Measurements, base: DeviceModel) -> str:
    most = int(measurements.counts[list(measurements.measured)].max())
    return (
        f"{counted(most, 'cycle')} a device at most: how cells change from cycle to cycle, and how much, is that of "
        f"{base.name} and was not measured"
    )


def _usable(measurements: Measurements, options: FitOptions, notes: list[str]) -> Ints:
    """Return the indices [devices] of the devices to fit. Raises InputError for impossible or too few values."""
    path, measured, counts = measurements.path, list(measurements.measured), measurements.counts
    if measurements.faults:
        raise InputError(f"{path}: {measurements.faults[0]}")
    varies = np.zeros((len(measured), len(measurements.devices)), dtype=bool)
    for row, feature in zip(varies, measured, strict=True):
        if not counts[feature].any():
            raise InputError(f"{path}: no cycle has a {NAMES[feature]}; --from-base takes it from the base model")
        values = measurements.y[feature]
        row[:] = np.nanmax(values, axis=1, initial=-np.inf) > np.nanmin(values, axis=1, initial=np.inf)
        if not row.any() and counts[feature].max() > 1:
            raise InputError(f"{path}: {NAMES[feature]} is constant; --from-base takes it from the base model")
    shortest = counts[measured].min(axis=0)
    least = max(LEAST_CYCLES, CYCLES_PER_ORDER * options.order)
    if options.has_base_cycles:
        least = 1
    usable = np.flatnonzero((shortest >= least) & (varies.all(axis=0) | options.has_base_cycles))
    needed = DEVICES_PER_COMPONENT * (options.components or 1)
    if len(usable) < needed:
        raise InputError(
            f"{path}: {len(usable)} of {counted(len(shortest), 'device')} {'has' if len(shortest) == 1 else 'have'} "
            f"the {least} cycles that order {options.order} needs; {needed} devices are needed"
            f"{_remedy(shortest, needed, options)}"
        )
    samples = int(shortest[usable].sum())
    if not options.has_base_cycles and samples < SAMPLES_PER_ORDER * options.order:
        raise InputError(
            f"{path}: order {options.order} needs {SAMPLES_PER_ORDER * options.order} cycles of all devices together, "
            f"but there are {samples}; try --order {max(1, samples // SAMPLES_PER_ORDER)}"
        )
    if left_out := len(shortest) - len(usable):
        were = "was" if left_out == 1 else "were"
        devices = counted(len(shortest), "device")
        notes.append(f"{left_out} of {devices} {were} left out: under {least} cycles, or constant")
    return usable


def _remedy(shortest: Ints, needed: int, options: FitOptions) -> str:
    """Return a hint for too few devices or cycles: more files, fewer components, or a lower order."""
    if len(shortest) < needed:
        if few := len(shortest) // DEVICES_PER_COMPONENT:
            return f" for {counted(options.components or 1, 'component')}; try --components {few}"
        return "; several files, or a folder of them, are one measurement"
    cycles = int(np.sort(shortest)[-needed])
    if cycles >= LEAST_CYCLES:
        return f"; try --order {cycles // CYCLES_PER_ORDER}"
    return (
        "; so few cycles do not tell how a cell changes from cycle to cycle, which --from-base cycles takes from the "
        "base model"
    )


def _corrected(
    statistics: Statistics,
    y: Floats,
    measured: list[int],
    base: DeviceModel,
    options: FitOptions,
    notes: list[str],
    progress: Progress,
) -> tuple[DeviceModel, Twin, int]:
    """Return (`base` with fitted polynomials and process, its twin, the number of rounds)."""
    hermite, correlation = statistics.hermite, statistics.correlations
    for rounds in range(1, _ROUNDS + 1):
        stable, _ = stabilised(_with_base_cycles(correlation, measured, base, options.order), options.order)
        model = _cycle_model(stable, hermite, measured, base, options.order)
        twin = Twin.of(model, y, measured, options.order, options.seed)
        before = correlation
        hermite = np.stack([normalised(row) for row in statistics.hermite - twin.hermite_bias])
        correlation = correlations(statistics.correlations - twin.correlation_bias)
        progress("fitting", 0.2 + 0.6 * rounds / _ROUNDS)
        if np.abs(correlation - before).max() < _CONVERGED:
            break
    else:
        notes.append(
            f"the correction for short series did not settle in {_ROUNDS} rounds: more cycles a device are needed"
        )
    stable, white = stabilised(_with_base_cycles(correlation, measured, base, options.order), options.order)
    if white:
        notes.append(f"the process was not stationary as estimated: {white:.1%} of white noise was mixed in")
    return _cycle_model(stable, hermite, measured, base, options.order), twin, rounds


def _cycle_model(
    correlation: Floats, hermite: Floats, measured: list[int], base: DeviceModel, order: int
) -> DeviceModel:
    """Return `base` with polynomials `hermite` [F, 5] and processes from `correlation` [order + 1, 4, 4]."""
    std = stationary_autocovariances(base, 0)[0].diagonal().sqrt()
    gamma = base.gamma * std[:, None] ** torch.arange(4, -1, -1)  # in the fit, x has unit variance
    for i, row in zip(measured, hermite, strict=True):
        gamma[i] = torch.from_numpy(power_series(row).copy())
    var = {p: torch.from_numpy(yule_walker(correlation, p)) for p in range(1, order + 1)}
    return dataclasses.replace(base, gamma=gamma, var=var)


def _with_base_cycles(correlation: Floats, measured: list[int], base: DeviceModel, order: int) -> Floats:
    """Return the correlations of all features [order + 1, 4, 4].

    Features that were not measured have the base model's, and are independent of the measured ones.
    """
    missing = [i for i in range(4) if i not in measured]
    completed, lags = np.zeros((order + 1, 4, 4)), np.arange(order + 1)
    of_base = correlations(stationary_autocovariances(base, order).numpy())
    completed[np.ix_(lags, np.array(measured), np.array(measured))] = correlation
    if missing:
        place = np.ix_(lags, np.array(missing), np.array(missing))
        completed[place] = of_base[place]
    return completed


def _with_base_devices(mixture: Mixture, measured: list[int], base: DeviceModel) -> tuple[Floats, Floats, Floats]:
    """Return (weights [K], means [8, K], Cholesky factors [K, 8, 8]) over all features.

    Features that were not measured have the base model's moments, and are independent of the measured ones.
    """
    rows = np.array([*measured, *(4 + i for i in measured)])
    mean, covariance = mixture_moments(
        base.mixture_weights.numpy(), base.mixture_means.numpy(), base.mixture_cholesky.numpy()
    )
    means = np.tile(mean[:, None], (1, len(mixture.weights)))
    means[rows] = mixture.means
    covariance[rows], covariance[:, rows] = 0.0, 0.0
    cholesky = np.empty((len(mixture.weights), 8, 8))
    for factor, out in zip(mixture.cholesky, cholesky, strict=True):
        covariance[np.ix_(rows, rows)] = factor @ factor.T
        out[:] = np.linalg.cholesky(covariance)
    return mixture.weights, means, cholesky


def _note_mixture(mixture: Mixture, measured: list[int], notes: list[str]) -> None:
    """Append notes about estimation noise and about scales below zero."""
    names = [f"{kind} {NAMES[i]}" for kind in ("mean", "deviation of") for i in measured]
    for name, share in zip(names, mixture.noise_share, strict=True):
        if share > MOST_NOISE:
            notes.append(
                f"{min(share, 1):.0%} of the variance of the {name} over devices is estimation noise, and was taken "
                "out: more cycles a device would make the rest more certain"
            )
    for i, share in zip(measured, mixture.negative_scales(), strict=True):
        if share > 1e-3:
            notes.append(
                f"{share:.1%} of the devices drawn have a negative {NAMES[i]} scale: its spread is wide for a Gaussian"
            )
