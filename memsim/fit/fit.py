"""A device model from measurements: offsets, scales, polynomials, the cycle-to-cycle process and the device mixture.

Standardising a device's series by its own mean and deviation, which is what makes devices comparable, biases all that
follows: the series has a long memory, so these two are noisy even over thousands of cycles, and they take slow
fluctuations with them. How much is measured on a twin: series of the same lengths and gaps, drawn from the fitted
model and treated alike, once with their true offsets and scales and once with estimated ones. The difference is taken
out, and the fit repeated until it no longer changes (indirect inference: Gourieroux et al., J. Appl. Econometrics
8:S85, 1993).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from memsim.device import DeviceModel, load_device
from memsim.device.cells import Cells
from memsim.device.features import draw_variates, stationary_autocovariances
from memsim.device.model import HRS, LRS, polynomial
from memsim.errors import InputError
from memsim.fit.arrays import Floats, Ints
from memsim.fit.envelopes import Envelopes, envelopes
from memsim.fit.measurements import NAMES, Measurements, Progress
from memsim.fit.mixture import DEVICES_PER_COMPONENT, Mixture, fit_mixture
from memsim.fit.normalise import NormalScores, normalised, power_series, standardise
from memsim.fit.var import (
    autocovariances,
    correlations,
    information_criteria,
    spectral_radius,
    stabilised,
    yule_walker,
)
from memsim.rng import derive_seed, generator
from memsim.units import counted

LEAST_CYCLES = 20
CYCLES_PER_ORDER = 5
"""A device needs this many cycles for each order of the process, and LEAST_CYCLES anyway."""
SAMPLES_PER_ORDER = 200
"""All devices together need this many cycles for each order: 50 for each coefficient of a feature."""
TWIN_CYCLES = 1_000_000
"""A twin of fewer cycles is drawn several times over."""
MOST_NOISE = 0.5
"""Of the variance over devices: a larger share that is estimation noise is said."""
DRAWN_CELLS = 1 << 18
"""How many cells of a fitted model are drawn to see that they are possible."""
MOST_BEYOND = 0.02
"""Of the cells drawn: a larger share with an LRS beyond its envelope is said."""
_ROUNDS = 12
_CONVERGED = 5e-4


@dataclass(frozen=True)
class FitOptions:
    """What `fit_device` is asked for.

    order: of the cycle-to-cycle process; all lower ones are stored, too.
    components: of the device mixture; None chooses by the Bayesian information criterion.
    base: the device model that what was not measured comes from.
    reset_full_volts: Umax, where the base model's (or the sweeps') is not right.
    linear_lrs: LLRS(U) is a straight line.
    name: of the model.
    """

    order: int = 10
    components: int | None = None
    base: str = "synaptogen"
    reset_full_volts: float | None = None
    linear_lrs: bool = False
    seed: int = 0
    name: str = "device"


@dataclass(frozen=True)
class Fit:
    """A fitted device model, and how it came about."""

    model: DeviceModel
    options: FitOptions
    devices: Ints  # indices of those that were fitted
    offsets_and_scales: Floats  # [2F, devices] estimates, of the features measured
    mixture: Mixture  # of the features measured
    envelopes: Envelopes
    criteria: dict[int, tuple[float, float]]  # order -> (AIC, BIC) a cycle
    spectral_radius: float  # of the highest order
    rounds: int  # of correction
    notes: tuple[str, ...]  # what a user should know

    def provenance(self, measurements: Measurements) -> dict[str, str]:
        """What a device file says of its origin, as metadata."""
        import scipy
        import sklearn

        layout = measurements.layout
        facts = {
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
            "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "scikit-learn": sklearn.__version__},
        }
        return {"fit": json.dumps(facts)}


def fit_device(
    measurements: Measurements, options: FitOptions | None = None, progress: Progress = lambda name, done: None
) -> Fit:
    """The device model whose cells behave as the measured ones.

    Raises InputError for measurements that the model cannot hold (signs, constant columns) and for too few of them.
    """
    options = options or FitOptions()
    base = load_device(options.base)
    notes: list[str] = []
    devices = _usable(measurements, options, notes)
    measured = list(measurements.measured)
    y, counts = measurements.y[measured][:, devices], measurements.counts[measured][:, devices]
    curves = envelopes(measurements, base, options.linear_lrs)
    if options.reset_full_volts is not None:
        curves = dataclasses.replace(curves, reset_full_volts=options.reset_full_volts)
    statistics = _Statistics.of(y, options.order)
    progress("fitting", 0.2)
    cycle_model, twin, rounds = _corrected(statistics, y, measured, curves.on(base), options, notes, progress)
    estimates = np.concatenate([statistics.mean, statistics.std / twin.scale_bias[:, None]])
    mixture = fit_mixture(estimates, twin.noise, options.components, derive_seed(options.seed, "mixture"))
    _note_mixture(mixture, measured, notes)
    weights, means, cholesky = _with_base_devices(mixture, measured, base)
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
        licence=base.licence if curves.is_of_base or len(measured) < 4 else "",
    )
    _require_possible(model, measurements, notes)
    var = {order: matrix.numpy() for order, matrix in model.var.items()}
    progress("fitting", 1.0)
    return Fit(
        model,
        options,
        devices,
        estimates,
        mixture,
        curves,
        information_criteria(var, int(counts.min(axis=0).sum())),
        spectral_radius(var[options.order]),
        rounds,
        tuple(notes),
    )


def _usable(measurements: Measurements, options: FitOptions, notes: list[str]) -> Ints:
    """[n] indices of the devices to fit. Raises InputError for what the model cannot hold, and for too few."""
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
    usable = np.flatnonzero((shortest >= least) & varies.all(axis=0))
    needed = DEVICES_PER_COMPONENT * (options.components or 1)
    if len(usable) < needed:
        raise InputError(
            f"{path}: {len(usable)} of {counted(len(shortest), 'device')} {'has' if len(usable) == 1 else 'have'} the "
            f"{least} cycles that order {options.order} needs; {needed} devices are needed"
            f"{_remedy(shortest, needed, options)}"
        )
    samples = int(shortest[usable].sum())
    if samples < SAMPLES_PER_ORDER * options.order:
        raise InputError(
            f"{path}: order {options.order} needs {SAMPLES_PER_ORDER * options.order} cycles of all devices together, "
            f"here are {samples}; try --order {max(1, samples // SAMPLES_PER_ORDER)}"
        )
    if left_out := len(shortest) - len(usable):
        were = "was" if left_out == 1 else "were"
        devices = counted(len(shortest), "device")
        notes.append(f"{left_out} of {devices} {were} left out: under {least} cycles, or constant")
    return usable


def _remedy(shortest: Ints, needed: int, options: FitOptions) -> str:
    """What would do with the devices there are: fewer components, or a lower order."""
    if len(shortest) < needed:
        few = len(shortest) // DEVICES_PER_COMPONENT
        return f" for {counted(options.components or 1, 'component')}; try --components {few}" if few else ""
    cycles = int(np.sort(shortest)[-needed])
    return f"; try --order {cycles // CYCLES_PER_ORDER}" if cycles >= LEAST_CYCLES else ""


@dataclass(frozen=True)
class _Statistics:
    """What is computed of series [F, devices, cycles], measured or drawn, in the same way."""

    mean: Floats  # [F, devices]
    std: Floats  # [F, devices]
    hermite: Floats  # [F, 5] normalising polynomials, of mean 0 and standard deviation 1
    correlations: Floats  # [order + 1, F, F] of the normal scores

    @classmethod
    def of(cls, y: Floats, order: int, *, known: bool = False) -> _Statistics:
        """known: `y` is in its true units already, and is taken as it is."""
        x = np.empty_like(y)
        mean, std = np.zeros(y.shape[:2]), np.ones(y.shape[:2])
        hermite = np.empty((len(y), 5))
        for i, series in enumerate(y):
            z = series
            if not known:
                own = standardise(series)
                z, mean[i], std[i] = own.z, own.mean, own.std
            scores = NormalScores.of(z)
            hermite[i] = normalised(scores.hermite())
            x[i] = scores(z)
        return cls(mean, std, hermite, correlations(autocovariances(x, order)))


@dataclass(frozen=True)
class _Twin:
    """What estimating a device's offset and scale did to a twin of the measurements."""

    hermite_bias: Floats  # [F, 5]
    correlation_bias: Floats  # [order + 1, F, F]
    scale_bias: Floats  # [F] mean estimated scale of a device whose scale is 1
    noise: Floats  # [2F, 2F] covariance of estimated offsets and scales of devices of offset 0 and scale 1

    @classmethod
    def of(cls, model: DeviceModel, y: Floats, measured: list[int], order: int, seed: int) -> _Twin:
        """A twin of `y` [F, devices, cycles], drawn from the process and the polynomials of `model`."""
        _, devices, cycles = y.shape
        copies = max(1, -(-TWIN_CYCLES // (devices * cycles)))
        x = draw_variates(model, devices * copies, cycles, generator(seed, "twin"), order=order)[measured]
        drawn = np.stack([polynomial(model.gamma[i], row).numpy() for i, row in zip(measured, x, strict=True)])
        gaps = np.isnan(y)
        if gaps.any():
            drawn[np.tile(gaps, (1, copies, 1))] = np.nan
        true = np.sqrt(np.nanmean(np.square(drawn), axis=(1, 2), dtype=np.float64))
        drawn /= true[:, None, None].astype(np.float32)
        known, estimated = _Statistics.of(drawn, order, known=True), _Statistics.of(drawn, order)
        scale_bias = estimated.std.mean(axis=1)
        errors = np.concatenate([estimated.mean, estimated.std / scale_bias[:, None]])
        return cls(
            estimated.hermite - known.hermite,
            estimated.correlations - known.correlations,
            scale_bias,
            np.cov(errors),
        )


def _corrected(
    statistics: _Statistics,
    y: Floats,
    measured: list[int],
    base: DeviceModel,
    options: FitOptions,
    notes: list[str],
    progress: Progress,
) -> tuple[DeviceModel, _Twin, int]:
    """(`base` with fitted polynomials and process, its twin, rounds taken)."""
    hermite, correlation = statistics.hermite, statistics.correlations
    for rounds in range(1, _ROUNDS + 1):
        stable, _ = stabilised(_with_base_cycles(correlation, measured, base, options.order), options.order)
        model = _cycle_model(stable, hermite, measured, base, options.order)
        twin = _Twin.of(model, y, measured, options.order, options.seed)
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
    """`base` with these polynomials, and the processes of all orders that these correlations [order + 1, 4, 4] make."""
    std = stationary_autocovariances(base, 0)[0].diagonal().sqrt()
    gamma = base.gamma * std[:, None] ** torch.arange(4, -1, -1)  # here x has unit variance
    for i, row in zip(measured, hermite, strict=True):
        gamma[i] = torch.from_numpy(power_series(row).copy())
    var = {p: torch.from_numpy(yule_walker(correlation, p)) for p in range(1, order + 1)}
    return dataclasses.replace(base, gamma=gamma, var=var)


def _with_base_cycles(correlation: Floats, measured: list[int], base: DeviceModel, order: int) -> Floats:
    """[order + 1, 4, 4] correlations of all features; what was not measured is as in the base model, independently."""
    missing = [i for i in range(4) if i not in measured]
    completed, lags = np.zeros((order + 1, 4, 4)), np.arange(order + 1)
    of_base = correlations(stationary_autocovariances(base, order).numpy())
    completed[np.ix_(lags, np.array(measured), np.array(measured))] = correlation
    if missing:
        place = np.ix_(lags, np.array(missing), np.array(missing))
        completed[place] = of_base[place]
    return completed


def _with_base_devices(mixture: Mixture, measured: list[int], base: DeviceModel) -> tuple[Floats, Floats, Floats]:
    """(weights [K], means [8, K], Cholesky factors [K, 8, 8]) over all features.

    What was not measured is as in the base model, independently.
    """
    rows = np.array([*measured, *(4 + i for i in measured)])
    mean, covariance = _moments(base)
    means = np.tile(mean[:, None], (1, len(mixture.weights)))
    means[rows] = mixture.means
    covariance[rows], covariance[:, rows] = 0.0, 0.0
    cholesky = np.empty((len(mixture.weights), 8, 8))
    for factor, out in zip(mixture.cholesky, cholesky, strict=True):
        covariance[np.ix_(rows, rows)] = factor @ factor.T
        out[:] = np.linalg.cholesky(covariance)
    return mixture.weights, means, cholesky


def _require_possible(model: DeviceModel, measurements: Measurements, notes: list[str]) -> None:
    """Raise InputError where cells drawn from `model` have resistances at or below 0; note conductances beyond LLRS."""
    features = Cells(model, DRAWN_CELLS, generator(0, "fit check")).features
    for feature in (LRS, HRS):
        share = float((features[feature] <= 0).float().mean())
        if share:
            raise InputError(
                f"{measurements.path}: {share:.1%} of the cells drawn from the fitted model have an {NAMES[feature]} "
                "at or below 0 ohm, so nothing can be computed with it: its spread is too wide for the model"
                f"{_failed_cycles(measurements)}"
            )
    share = float((model.state_of_resistance(features[LRS]) < 0).float().mean())
    if share > MOST_BEYOND:
        notes.append(
            f"{share:.1%} of the cells drawn have an LRS below that of the lowest-resistance envelope, "
            f"{1 / model.reference_conductances_siemens[0]:.0f} ohm{_failed_cycles(measurements)}"
        )


def _failed_cycles(measurements: Measurements) -> str:
    """What may be wrong where LRS scatters too much, and what to do."""
    failed = int((measurements.y[LRS] > 10.0 ** measurements.y[HRS] / 2).sum())
    cycles = int(np.isfinite(measurements.y[LRS]).sum())
    if not failed or LRS not in measurements.measured:
        return "; leave cycles that failed empty, or take LRS from the base model (--from-base lrs)"
    return f"; in {failed:,} of {cycles:,} cycles LRS is near HRS, as where a SET fails: leave LRS empty in those"


def _moments(base: DeviceModel) -> tuple[Floats, Floats]:
    """(mean [8], covariance [8, 8]) of a model's device mixture."""
    weights, means = base.mixture_weights.numpy(), base.mixture_means.numpy()
    factors = base.mixture_cholesky.numpy()
    mean = means @ weights
    within = np.einsum("k,kij,klj->il", weights, factors, factors)
    return mean, within + (means * weights) @ means.T - np.outer(mean, mean)


def _note_mixture(mixture: Mixture, measured: list[int], notes: list[str]) -> None:
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
