"""The I-V envelopes and the RESET transition, fitted to sweeps or taken from a base model.

In the model, I(U) = (1 - r) LLRS(U) + r HHRS(U) (Hennen et al., Front. Neurosci. 16:941753, 2022): the current at any
voltage is affine in the conductance G at the read voltage. Measurements determine this family of curves, but not which
two of them are LLRS and HHRS. Here, these two are chosen so that the measured cells' mean LRS and mean HRS have the
same states r as in the base model (0.16 and 0.83 in the published one).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares

from memsim.device import DeviceModel, state_means
from memsim.device.cycles.model import HRS, LRS, UR, US
from memsim.errors import InputError
from memsim.fit.arrays import Bools, Floats, Ints
from memsim.fit.measurements import Measurements
from memsim.fit.sweeps import Traces

LLRS_DEGREE, HHRS_DEGREE = 6, 5
LEAST_TRACES = 50
MOST_OUTSIDE = 0.01
"""Share of the cells that may lie beyond a base model's envelopes before the envelopes are scaled."""
_CLEAR_OF_SWITCHING = 0.9
_CLEAR_OF_COMPLIANCE = 0.95
_MISFIT = 0.01  # relative deviation of a real curve from a polynomial
_ALTERNATIONS = 4
_REWEIGHTINGS = 4
_HUBER = 2.0  # residuals beyond this many robust standard deviations count less


@dataclass(frozen=True)
class Envelopes:
    """The parameters of a device model that determine currents, and their source."""

    llrs: Floats  # [degree + 1] amperes of volts, highest power first
    hhrs: Floats
    reference_volts: float
    reset_full_volts: float
    reset_exponent: float
    source: str
    error: float | None = None  # median relative error of curves fitted to sweeps; None for those of a base model

    def on(self, model: DeviceModel) -> DeviceModel:
        """Return `model` with these envelopes."""
        return dataclasses.replace(
            model,
            llrs=torch.from_numpy(self.llrs.copy()),
            hhrs=torch.from_numpy(self.hhrs.copy()),
            reference_volts=self.reference_volts,
            reset_full_volts=self.reset_full_volts,
            reset_exponent=self.reset_exponent,
        )


def envelopes(measurements: Measurements, base: DeviceModel, linear_lrs: bool = False) -> Envelopes:
    """Fit the envelopes if there are enough sweeps; otherwise take them from `base`.

    Args:
        measurements: the features, and the sample of sweeps if there is one.
        base: the base model.
        linear_lrs: whether LLRS is a straight line.

    Raises:
        InputError: if the mean LRS is not below the mean HRS.
    """
    conductances = _mean_conductances(measurements, base)
    if not conductances[1] > conductances[0] * 1.01:
        low, high = (1 / g for g in reversed(conductances))
        raise InputError(
            f"{measurements.path}: the mean LRS ({low:.4g} ohm) is not below the mean HRS ({high:.4g} ohm)"
        )
    traces = measurements.traces
    if traces is not None and len(traces) >= LEAST_TRACES:
        return _fitted(measurements, base, conductances, linear_lrs)
    return _of_base(measurements, base, conductances[1], linear_lrs)


def _mean_conductances(measurements: Measurements, base: DeviceModel) -> tuple[float, float]:
    """Return the mean conductances (HRS, LRS) in siemens; a state that was not measured has the base model's."""
    means = dict(zip((LRS, HRS), _base_conductances(base, measurements.read_volts), strict=True))
    for state in means:
        if state in measurements.measured:
            ohms = measurements.y[state].astype(np.float64)
            means[state] = float(np.nanmean(10.0**-ohms if state == HRS else 1 / ohms))
    return means[HRS], means[LRS]


def _base_conductances(base: DeviceModel, volts: float) -> tuple[float, float]:
    """Return the conductances (LRS, HRS) of the base model's mean cells in siemens at `volts`."""
    at = torch.tensor(volts, dtype=torch.float64)
    low, high = (base.conductance_siemens(at, torch.tensor(r, dtype=torch.float64)).item() for r in state_means(base))
    return low, high


def _of_base(measurements: Measurements, base: DeviceModel, lrs_siemens: float, linear_lrs: bool) -> Envelopes:
    """Take the base model's curves; scale their currents or voltages if many cells lie outside."""
    source, scale, stretch = base.name, 1.0, 1.0
    read_as_measured = dataclasses.replace(base, reference_volts=measurements.read_volts)
    ohms = np.concatenate([10.0 ** measurements.y[HRS].astype(np.float64), measurements.y[LRS].astype(np.float64)])
    r = read_as_measured.state_of_resistance(torch.from_numpy(ohms[np.isfinite(ohms)])).numpy()
    if len(r) and np.mean((r < 0) | (r > 1)) > MOST_OUTSIDE:
        scale = lrs_siemens / _base_conductances(base, measurements.read_volts)[0]
        source += f", currents scaled by {scale:.3g} so that the measured resistances lie between the envelopes"
    volts = measurements.y[UR][np.isfinite(measurements.y[UR])]
    if len(volts) and np.quantile(volts, 0.999) > base.reset_full_volts:
        median = float(np.median(volts))
        stretch = median / float((base.mixture_means @ base.mixture_weights)[UR])
        source += f", full RESET moved by {stretch:.3g} as the median UR"
    llrs, hhrs = scale * base.llrs.numpy(), scale * base.hhrs.numpy()
    if linear_lrs:
        slope = np.polyval(llrs, measurements.read_volts) / measurements.read_volts
        llrs = np.array([slope, 0.0])
        source += ", LLRS made a straight line"
    full = base.reset_full_volts * stretch
    return Envelopes(llrs, hhrs, measurements.read_volts, full, base.reset_exponent, source)


@dataclass(frozen=True)
class _Cells:
    """The features [n] of the cycles in the traces."""

    hrs_before: Floats  # ohm
    set_volts: Floats
    lrs: Floats
    reset_volts: Floats
    hrs_after: Floats  # ohm


def _cells(measurements: Measurements) -> _Cells:
    traces, y = measurements.traces, measurements.y.astype(np.float64)
    assert traces is not None
    index = traces.cycle - measurements.first_cycles[traces.device]
    now = y[:, traces.device, index]
    padded = np.concatenate([y[HRS], np.full((y.shape[1], 1), np.nan)], axis=1)
    return _Cells(10 ** now[HRS], now[US], now[LRS], now[UR], 10 ** padded[traces.device, index + 1])


def _fitted(
    measurements: Measurements, base: DeviceModel, conductances: tuple[float, float], linear_lrs: bool
) -> Envelopes:
    assert measurements.traces is not None
    cells, reference = _cells(measurements), measurements.read_volts
    r_lrs, r_hrs = state_means(base)
    per_state = (conductances[1] - conductances[0]) / (r_hrs - r_lrs)
    gauge = _Gauge(reference, conductances[1] + r_lrs * per_state, per_state)
    samples = _undisturbed(measurements.traces, cells, gauge)
    degrees = 1 if linear_lrs else LLRS_DEGREE, HHRS_DEGREE
    for _ in range(_ALTERNATIONS):
        llrs, hhrs, error = _family(samples, gauge, *degrees)
        samples = samples.with_states_of(llrs, hhrs)
    full, exponent = _transition(measurements.traces, cells, llrs, hhrs, reference, base)
    source = f"{len(measurements.traces):,} of the measured sweeps"
    return Envelopes(llrs, hhrs, reference, full, exponent, source, error)


@dataclass(frozen=True)
class _Gauge:
    """The choice of LLRS and HHRS within the family of curves: r = (llrs - G) / window."""

    volts: float  # the voltage of the conductances
    llrs_siemens: float
    window_siemens: float  # conductance of LLRS less that of HHRS

    def r(self, siemens: Floats) -> Floats:
        return (self.llrs_siemens - siemens) / self.window_siemens


@dataclass(frozen=True)
class _Undisturbed:
    """Samples [n] of cells that hold a state, away from any switching."""

    volts: Floats
    amperes: Floats
    weight: Floats  # inverse standard deviation of the current about the curve, scaled to a maximum of 1
    state: Ints  # index of the state: each cycle has one before the SET, one after it, and one after the RESET
    measured_r: Floats  # estimated from the resistance at the read voltage
    r: Floats  # the best estimate

    def with_states_of(self, llrs: Floats, hhrs: Floats) -> _Undisturbed:
        """Estimate each state r from all its samples, given the envelopes.

        The estimates are calibrated to those at the read voltage by a straight line. The latter are noisier, and their
        noise would bias a fit.
        """
        start = np.polyval(llrs, self.volts)
        window = np.polyval(hhrs, self.volts) - start
        square = np.square(self.weight)
        projected = np.bincount(self.state, square * window * (self.amperes - start))
        r = (projected / np.maximum(np.bincount(self.state, square * window * window), 1e-300))[self.state]
        slope, offset = np.polyfit(r, self.measured_r, 1)
        return dataclasses.replace(self, r=offset + slope * r)


def _undisturbed(traces: Traces, cells: _Cells, gauge: _Gauge) -> _Undisturbed:
    volts, amperes = traces.volts, traces.amperes
    to_low, to_high, back = _legs(volts)
    held = np.nanmin(amperes, axis=1)[:, None]  # the compliance, if there is one
    with np.errstate(invalid="ignore"):
        before_set = to_low & (volts > _CLEAR_OF_SWITCHING * cells.set_volts[:, None])
        after_set = to_high & (volts < 0) & (amperes > _CLEAR_OF_COMPLIANCE * held)
        before_reset = to_high & (volts > 0) & (volts < _CLEAR_OF_SWITCHING * cells.reset_volts[:, None])
        after_reset = back & (volts > 0)
        # two sources of error: the noise of the instrument, and the deviation of real curves from polynomials
        noise = 1.4826 / np.sqrt(6) * float(np.nanmedian(np.abs(np.diff(np.where(after_reset, amperes, np.nan), 2))))
    parts = []
    masks_and_ohms = (
        (before_set, cells.hrs_before),
        (after_set | before_reset, cells.lrs),
        (after_reset, cells.hrs_after),
    )
    for number, (mask, ohms) in enumerate(masks_and_ohms):
        mask = mask & np.isfinite(ohms)[:, None] & np.isfinite(volts)
        cycle = np.nonzero(mask)[0]
        parts.append(
            np.stack([volts[mask], amperes[mask], gauge.r(1 / ohms[cycle]), len(masks_and_ohms) * cycle + number])
        )
    u, i, r, state = np.concatenate(parts, axis=1)
    expected = u * (gauge.llrs_siemens - r * gauge.window_siemens)
    weight = 1 / np.hypot(noise, _MISFIT * expected)
    return _Undisturbed(u, i, weight / weight.max(), state.astype(np.int64), r, r)


def _legs(volts: Floats) -> tuple[Bools, Bools, Bools]:
    """Return masks [n, samples] of the samples before Vneg, between Vneg and Vpos, and after Vpos."""
    place = np.arange(volts.shape[1])
    lowest, highest = np.nanargmin(volts, axis=1)[:, None], np.nanargmax(volts, axis=1)[:, None]
    return place < lowest, (place > lowest) & (place < highest), place > highest


def _family(samples: _Undisturbed, gauge: _Gauge, llrs_degree: int, hhrs_degree: int) -> tuple[Floats, Floats, float]:
    """Fit polynomials through the origin to the samples; return (LLRS, HHRS, median relative error).

    Both have the gauge's conductance at the read voltage. Large errors such as glitches count less (Huber weights).
    """
    u = samples.volts / gauge.volts

    def basis(degree: int) -> Floats:
        """Return u (u^(j-1) - 1) [n, degree - 1], j = degree ... 2, which are 0 at 0 V and at the read voltage."""
        return np.array([u * (u ** (j - 1) - 1) for j in range(degree, 1, -1)]).reshape(degree - 1, len(u)).T

    r = samples.r[:, None]
    matrix = np.concatenate([(1 - r) * basis(llrs_degree), r * basis(hhrs_degree)], axis=1) * samples.weight[:, None]
    straight = samples.volts * (gauge.llrs_siemens - samples.r * gauge.window_siemens)
    target = (samples.amperes - straight) * samples.weight
    matrix_scale = np.linalg.norm(matrix, axis=0)
    scaled, robust = matrix / matrix_scale, np.ones(len(target))
    for _ in range(_REWEIGHTINGS):
        weighted = scaled * robust[:, None]
        solution = np.linalg.solve(weighted.T @ scaled, weighted.T @ target)
        residual = np.abs(target - scaled @ solution)
        robust = np.minimum(1, _HUBER * 1.4826 * np.median(residual) / np.maximum(residual, 1e-300))
    coefficients = solution / matrix_scale

    def polynomial(own: Floats, siemens: float) -> Floats:
        powers = gauge.volts ** -np.arange(len(own) + 1.0, 1, -1)
        return np.concatenate([own * powers, [siemens - own.sum() / gauge.volts, 0.0]])

    split = llrs_degree - 1
    relative = residual / samples.weight / np.maximum(np.abs(samples.amperes), 1e-300)
    return (
        polynomial(coefficients[:split], gauge.llrs_siemens),
        polynomial(coefficients[split:], gauge.llrs_siemens - gauge.window_siemens),
        float(np.median(relative)),
    )


def _transition(
    traces: Traces, cells: _Cells, llrs: Floats, hhrs: Floats, reference: float, base: DeviceModel
) -> tuple[float, float]:
    """Fit I(U) = a |Umax - U|^eta + c from (UR, LRS current) to (Umax, HRS current); return (Umax, eta)."""
    volts, amperes = traces.volts, traces.amperes
    _, to_high, _ = _legs(volts)
    with np.errstate(invalid="ignore"):
        moving = to_high & (volts > cells.reset_volts[:, None]) & np.isfinite(cells.hrs_after * cells.lrs)[:, None]
    cycle, _ = np.nonzero(moving)
    u, i, start = volts[moving], amperes[moving], cells.reset_volts[cycle]
    llrs_siemens, hhrs_siemens = (np.polyval(curve, reference) / reference for curve in (llrs, hhrs))

    def current(at: Floats | float, ohms: Floats) -> Floats:
        r = (llrs_siemens - 1 / ohms) / (llrs_siemens - hhrs_siemens)
        result: Floats = (1 - r) * np.polyval(llrs, at) + r * np.polyval(hhrs, at)
        return result

    begin, after = current(start, cells.lrs[cycle]), cells.hrs_after[cycle]

    def residuals(parameters: Floats) -> Floats:
        full, exponent = parameters
        end = current(full, after)
        left = np.clip((full - u) / (full - start), 0, None) ** exponent
        predicted = np.where(u < full, end + (begin - end) * left, current(u, after))
        return np.asarray((predicted - i) / np.median(begin))

    peak = float(np.nanmax(volts))
    lowest = min(1.02 * float(np.nanquantile(cells.reset_volts, 0.999)), 0.98 * peak)
    first = float(np.clip(base.reset_full_volts, 1.001 * lowest, 0.999 * peak)), base.reset_exponent
    best = least_squares(residuals, first, bounds=([lowest, 0.2], [peak, 20.0]), loss="soft_l1", f_scale=0.05)
    return float(best.x[0]), float(best.x[1])
