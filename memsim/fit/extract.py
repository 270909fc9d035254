"""The features of single sweeps: the resistances, the voltage of the SET and the voltage of the RESET onset.

A SET is a jump of the current, however small it is at a voltage at which the HRS conducts well; in a cell that changes
gradually, it is where the conductance is half way, by its logarithm, from that before to that after.

All cycles of a batch are computed side by side. A cycle is 0 -> Vneg -> 0 -> Vpos -> 0 in order of time; a cell SETs on
the way to Vneg and RESETs on the way to Vpos.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.fit.arrays import Bools, Floats, Ints

LEAST_RATIO = 2.0
"""Least ratio of the resistances before and after a successful SET or RESET."""
WINDOW = 0.3
"""Half width of the window in which a resistance is fitted, as a share of the read voltage."""
REACH = 0.9
"""Share of the usual extremes that a complete sweep reaches."""
HALF_WINDOW = 0.05
"""Half width of the window around the current's maximum in which the kink is searched, as a share of Vpos."""
END_HRS = 4
"""Index of the HRS at the end of a cycle, after the four features; it is the HRS of the next cycle."""
CHANNELS = END_HRS + 3
"""Number of values of a cycle: the four features, the HRS at its end, and the resistances after failures."""
_ABRUPT = 0.5
"""Least share of the change of log conductance still to come that an abrupt SET makes within three samples."""
_STEP = 3
"""Number of samples on either side of a jump whose mean conductances are compared."""
_HALF_LOBE = 0.5
_KNOTS_A_SAMPLE = 8


@dataclass(frozen=True)
class Sweeps:
    """Cycles side by side, padded with NaN to the length of the longest."""

    device: Ints  # [n]
    cycle: Ints  # [n]
    row: Ints  # [n] of the first sample
    volts: Floats  # [n, samples]
    amperes: Floats  # [n, samples]
    lowest: Ints  # [n] index of Vneg
    highest: Ints  # [n] index of Vpos

    @classmethod
    def of(cls, samples: NDArray[np.void], starts: Ints) -> Sweeps:
        """Cut `samples` in file order into cycles, which begin at the indices `starts`.

        Their fields are `device`, `cycle`, `row`, `volts` and `amperes`.
        """
        lengths = np.diff(starts, append=len(samples))
        place = np.arange(int(lengths.max()))
        is_sample = place < lengths[:, None]
        index = np.minimum(starts[:, None] + place, len(samples) - 1)
        u, i = (np.where(is_sample, samples[name][index], np.nan) for name in ("volts", "amperes"))
        lowest, highest = np.nanargmin(u, axis=1), np.nanargmax(u, axis=1)
        device, cycle, row = (samples[name][starts] for name in ("device", "cycle", "row"))
        return cls(device, cycle, row, u, i, lowest, highest)

    def legs(self) -> tuple[Bools, Bools, Bools]:
        """Return masks [n, samples] of the three legs: to Vneg, from Vneg to Vpos, and back from Vpos."""
        place = np.arange(self.volts.shape[1])
        to_low = place <= self.lowest[:, None]
        to_high = ~to_low & (place <= self.highest[:, None])
        return to_low, to_high, ~to_low & ~to_high & np.isfinite(self.volts)

    def reaches(self, low: float, high: float) -> Bools:
        """Return whether each cycle [n] goes to both extremes and back."""
        last = np.isfinite(self.volts).sum(axis=1) - 1
        ends = np.stack([self.volts[:, 0], np.take_along_axis(self.volts, last[:, None], axis=1)[:, 0]])
        goes = (np.nanmin(self.volts, axis=1) <= REACH * low) & (np.nanmax(self.volts, axis=1) >= REACH * high)
        returns = (np.abs(ends) <= _HALF_LOBE * min(-low, high)).all(axis=0)
        return np.asarray(goes & returns)

    def first_turn(self, tolerance: float) -> Ints:
        """Return the first sample [n] at which a leg has gone back by more than `tolerance` of the range, or -1."""
        to_low, to_high, back = self.legs()
        allowed = tolerance * (np.nanmax(self.volts, axis=1) - np.nanmin(self.volts, axis=1))[:, None]
        turned = np.zeros(self.volts.shape, dtype=bool)
        for leg, sign in ((to_low, -1.0), (to_high, 1.0), (back, -1.0)):
            travelled = np.where(leg, sign * self.volts, -np.inf)
            turned |= leg & (travelled < np.maximum.accumulate(travelled, axis=1) - allowed)
        return np.where(turned.any(axis=1), turned.argmax(axis=1), -1)


def features_of(sweeps: Sweeps, read_volts: float) -> tuple[Floats, Bools, Bools, Bools]:
    """Extract the features of `sweeps`.

    Returns:
        The values [CHANNELS, n]: the four features, the HRS at the end of the cycle (both HRS in log10 ohm, the first
        read at -`read_volts` on the way to Vneg), and log10 ohm after a SET and after a RESET that failed. Then whether
        the SET succeeded [n], whether the RESET succeeded [n], and whether the SET was gradual [n].
    """
    to_low, to_high, back = sweeps.legs()
    before = _resistance(sweeps, to_low, -read_volts)
    lrs = _resistance(sweeps, to_high, read_volts)
    after = _resistance(sweeps, back, read_volts)
    with np.errstate(invalid="ignore"):
        is_set = (before >= LEAST_RATIO * lrs) & (lrs > 0)
        set_volts, is_gradual = _set(sweeps, to_low & (sweeps.volts <= -read_volts / 2), is_set)
        is_set &= np.isfinite(set_volts)
        is_reset = (after >= LEAST_RATIO * lrs) & (lrs > 0)
        reset_volts = _reset(sweeps, to_high & (sweeps.volts >= read_volts))
        values = np.stack(
            [np.log10(before), set_volts, lrs, reset_volts, np.log10(after), np.log10(lrs), np.log10(after)]
        )
    values[:4, ~is_set] = np.nan
    values[3 : END_HRS + 1, ~is_reset] = np.nan
    values[END_HRS + 1, is_set] = np.nan
    values[END_HRS + 2, is_reset | ~is_set] = np.nan
    return values, is_set, is_reset, is_gradual & is_set


def _resistance(sweeps: Sweeps, leg: Bools, at_volts: float) -> Floats:
    """Return U / I [n] at `at_volts`, from the samples of `leg` near it; NaN if there are fewer than three.

    Near `at_volts` the conductance is a straight line: a least-squares fit of I = U (g + h (U - at_volts)) gives 1 / g.
    """
    distance = sweeps.volts - at_volts
    result = np.full(len(distance), np.nan)
    for window in (WINDOW, 2 * WINDOW):
        near = leg & (np.abs(distance) <= window * abs(at_volts) + 1e-9)
        u = np.where(near, sweeps.volts, 0.0)
        v, i = u * np.where(near, distance, 0.0), np.where(near, sweeps.amperes, 0.0)
        uu, uv, vv, ui, vi = ((a * b).sum(axis=1) for a, b in ((u, u), (u, v), (v, v), (u, i), (v, i)))
        with np.errstate(divide="ignore", invalid="ignore"):
            fitted = np.where(near.sum(axis=1) >= 3, (uu * vv - uv * uv) / (vv * ui - uv * vi), np.nan)
        result = np.where(np.isfinite(result), result, fitted)
    return result


def _set(sweeps: Sweeps, leg: Bools, is_set: Bools) -> tuple[Floats, Bools]:
    """Return the voltage of the SET [n], and whether it is gradual [n].

    The leg is fitted by two constant conductances, one before the jump and one after it, whether the current then
    follows the LRS or is held by a compliance. Where these are no two states, or the SET is not abrupt there, it is at
    the sharpest step of the leg, and where that is not abrupt either, half way. The voltage is the mean of the samples
    before and after the jump.
    """
    conductance = np.where(leg, sweeps.amperes / np.where(leg, sweeps.volts, 1.0), 0.0)
    count, total = np.cumsum(leg, axis=1), np.cumsum(conductance, axis=1)
    after_count, after_total = count[:, -1:] - count, total[:, -1:] - total
    before_mean, after_mean = total / np.maximum(count, 1), after_total / np.maximum(after_count, 1)
    separation = np.where(leg & (after_count > 0), count * after_count * np.square(after_mean - before_mean), -1.0)
    at = separation.argmax(axis=1)
    rows = np.arange(len(at))
    ratio = after_mean[rows, at] / np.where(before_mean[rows, at] > 0, before_mean[rows, at], np.nan)
    step, share = _steps(conductance, leg)
    is_abrupt = (ratio >= LEAST_RATIO) & (share[rows, at] >= _ABRUPT)
    at = np.where(is_abrupt, at, np.where(np.isfinite(step), step, -np.inf).argmax(axis=1))
    is_gradual = is_set & ~(share[rows, at] >= _ABRUPT)
    following = np.minimum(at + 1, sweeps.volts.shape[1] - 1)
    volts = np.where(leg.any(axis=1), (sweeps.volts[rows, at] + sweeps.volts[rows, following]) / 2, np.nan)
    volts[is_gradual] = _half_way(sweeps.volts[is_gradual], conductance[is_gradual], leg[is_gradual])
    return volts, is_gradual


def _steps(conductance: Floats, leg: Bools) -> tuple[Floats, Floats]:
    """Return how sharply the conductance rises after each sample of a leg [n, samples], NaN where it does not conduct.

    The first is the logarithm of the ratio of the mean of the next samples to that of the last ones, `_STEP` of each.
    The second is its share of the rise from the last ones to the end of the leg.
    """

    def last_and_next(values: Floats) -> tuple[Floats, Floats]:
        sums = np.pad(np.cumsum(values, axis=1), ((0, 0), (_STEP, 0)))
        sums = np.pad(sums, ((0, 0), (0, _STEP)), mode="edge")
        now = sums[:, _STEP:-_STEP]
        return now - sums[:, : -2 * _STEP], sums[:, 2 * _STEP :] - now

    with np.errstate(invalid="ignore", divide="ignore"):
        sums, counts = last_and_next(conductance), last_and_next(leg.astype(np.float64))
        before, after = sums[0] / counts[0], np.where(leg, sums[1] / counts[1], np.nan)
        last = leg.shape[1] - 1 - leg[:, ::-1].argmax(axis=1)
        end = before[np.arange(len(last)), last][:, None]
        step = np.log(after / before)
        return step, step / np.log(end / before)


def _half_way(volts: Floats, conductance: Floats, leg: Bools) -> Floats:
    """Return the voltage [n] at which the conductance first passes the geometric mean of the ends of a leg.

    NaN where an end does not conduct.
    """
    result = np.full(len(leg), np.nan)
    for row, mask in enumerate(leg):
        g, u = conductance[row, mask], volts[row, mask]
        if len(g) < 2 or min(g[0], g[-1]) <= 0:
            continue
        passed = np.flatnonzero(g >= np.sqrt(g[0] * g[-1]))
        if len(passed) and passed[0]:
            result[row] = (u[passed[0] - 1] + u[passed[0]]) / 2
    return result


def _reset(sweeps: Sweeps, leg: Bools) -> Floats:
    """Return the voltage [n] of the kink at which the current stops rising.

    Near the maximum, the current is fitted by a straight line up to the kink and a parabola after it. The kink, which
    may lie between two samples, has the least squared error.
    """
    current = np.where(leg, sweeps.amperes, -np.inf)
    smooth = np.where(leg, _smoothed(sweeps.amperes), -np.inf)
    peak = smooth.max(axis=1, keepdims=True)
    place = np.arange(leg.shape[1])
    coarse = np.where(smooth >= 0.99 * peak, place, -1).max(axis=1)  # the end of the plateau, if there is one
    rows = np.arange(len(coarse))
    result = sweeps.volts[rows, coarse]
    steps = np.abs(np.diff(sweeps.volts, axis=1))
    step = float(np.nanmedian(steps[leg[:, 1:]])) if leg[:, 1:].any() else np.nan
    if not step > 0:
        return np.where(leg.any(axis=1), result, np.nan)
    half = max(4, round(HALF_WINDOW * float(np.median(np.nanmax(sweeps.volts, axis=1))) / step))
    window = coarse[:, None] + np.arange(-half, half + 1)
    inside = ((window >= 0) & (window < leg.shape[1])).all(axis=1)
    window = np.clip(window, 0, leg.shape[1] - 1)
    inside &= np.take_along_axis(leg, window, axis=1).all(axis=1)
    if inside.any():
        kink = _kinks(np.take_along_axis(current, window, axis=1)[inside], half)
        knots = window[inside, 0] + half + kink
        below = np.floor(knots).astype(np.int64)
        above = np.minimum(below + 1, leg.shape[1] - 1)
        low, high = sweeps.volts[rows[inside], below], sweeps.volts[rows[inside], above]
        result[inside] = low + (knots - below) * (high - low)
    return np.where(leg.any(axis=1), result, np.nan)


def _kinks(current: Floats, half: int) -> Floats:
    """Return the positions [n] of the kinks, in samples from the middle, of windows `current` [n, 2 half + 1]."""
    place = np.arange(-half, half + 1, dtype=np.float64)
    knots = np.arange(-half * _KNOTS_A_SAMPLE // 2, half * _KNOTS_A_SAMPLE // 2 + 1) / _KNOTS_A_SAMPLE
    scaled = current / np.abs(current).max(axis=1, keepdims=True)
    explained = np.empty((len(current), len(knots)))
    for out, knot in zip(explained.T, knots, strict=True):
        behind = np.maximum(place - knot, 0)
        basis, _ = np.linalg.qr(np.stack([np.ones_like(place), place, behind, np.square(behind)], axis=1))
        out[:] = np.square(scaled @ basis).sum(axis=1)
    best = np.clip(explained.argmax(axis=1), 1, len(knots) - 2)
    before, at, after = (explained[np.arange(len(best)), best + step] for step in (-1, 0, 1))
    curvature = before - 2 * at + after  # the best knot is at the vertex of a parabola through three
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.where(curvature < 0, np.clip((before - after) / (2 * curvature), -1, 1), 0.0)
    return np.asarray(knots[best] + offset / _KNOTS_A_SAMPLE)


def _smoothed(x: Floats) -> Floats:
    """Return the means of three neighbours along the last axis."""
    result = x.copy()
    result[:, 1:-1] = (x[:, :-2] + x[:, 1:-1] + x[:, 2:]) / 3
    return result
