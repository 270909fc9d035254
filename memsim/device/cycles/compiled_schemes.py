"""The closed-loop schemes of `programming`, compiled for CPUs by numba: one pass over blocks of cells for each try.

They have the bits of the torch operations there, which are their definition. A block fits the cache of a core, and each
step is a loop over its cells that the compiler turns into vector instructions. The cells that missed their target are
collected, and draw their numbers again from their counters in the next try.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memsim.device.cycles.model import LOG2_OF_10, DeviceModel
from memsim.device.cycles.normals import fill_cell_normals
from memsim.portable.compiled import exp2, log2, random_words_of
from memsim.portable.kernels import float32, inlined, kernel, uint32

if TYPE_CHECKING:
    from memsim.device.cycles.programming import FullPulse

BLOCK = 512
"""Cells that are programmed together."""

_LOG2_OF_10, _ZERO, _ONE = np.float32(LOG2_OF_10), np.float32(0), np.float32(1)


class StateConstants(NamedTuple):
    """The numbers of `DeviceModel.state_of_resistance`."""

    llrs_siemens: np.float32
    state_per_siemens: np.float32

    @classmethod
    def of(cls, device: DeviceModel) -> StateConstants:
        """Return the numbers of a device."""
        llrs, hhrs = device.reference_conductances_siemens
        return cls(np.float32(llrs), np.float32(1 / (llrs - hhrs)))


class TryCost(NamedTuple):
    """The pulses of a try, the last of which leads to the state that it is charged at."""

    llrs_joules: np.float32  # of the last pulse, in r = 0
    window_joules: np.float32
    earlier_pulses: NDArray[np.int32]  # [2]: in the first and in later tries
    earlier_joules: NDArray[np.float32]  # [2]

    @classmethod
    def of(cls, last: FullPulse, earlier_pulses: tuple[int, int], earlier_joules: tuple[float, float]) -> TryCost:
        """Return the cost of tries with this last pulse."""
        return cls(
            np.float32(last.llrs_joules),
            np.float32(last.window_joules),
            np.array(earlier_pulses, np.int32),
            np.array(earlier_joules, np.float32),
        )


class OutcomeArrays(NamedTuple):
    """The arrays of an `Outcome`."""

    r: NDArray[np.float32]
    pulses: NDArray[np.int32]
    verify_reads: NDArray[np.int32]
    failed: NDArray[np.bool_]
    joules: NDArray[np.float32]


class SchemeConstants(NamedTuple):
    """The settings of an `IncrementalReset`."""

    targets: NDArray[np.float32]  # [levels]
    tolerance: np.float32
    tries: int
    pulse_seconds: np.float32


class Transitions(NamedTuple):
    """The transitions of n cells: see `ramp.RampCells`. Arrays are [n]."""

    lrs: NDArray[np.float32]
    first: NDArray[np.int32]
    slope: NDArray[np.float32]
    end_amperes: NDArray[np.float32]


class Stops(NamedTuple):
    """The pulses sent to n cells so far, and the state and the reading of each cell after them. Arrays are [n]."""

    sent: NDArray[np.int32]
    r: NDArray[np.float32]
    measured: NDArray[np.float32]


@kernel
def incremental_reset(law, state, ramp, read, cost, scheme, digits, cells, key, outcome):  # type: ignore[no-untyped-def]
    """Fill the `outcome` of programming cells: see `programming.IncrementalResetProgrammer`."""
    todo = np.arange(len(digits))
    for attempt in range(scheme.tries):
        missed = 0
        for start in range(0, len(todo), BLOCK):
            places = todo[start : start + BLOCK]
            counters, digit = _counters(cells, places), digits[places]
            features, normals = _features(law, counters, attempt, key)
            transitions = _transitions(ramp, state, features)
            stops = _first_stops(ramp, read, digit, transitions, normals)
            if read.is_noisy:
                targets = scheme.targets[digit]
                _read_on(ramp, read, targets, counters, attempt, law.draws + 1, key, transitions, stops)
            _add_try(ramp, cost, scheme.pulse_seconds, places, transitions, stops, outcome)
            for j in range(len(places)):
                todo[missed] = places[j]
                missed += abs(stops.measured[j] - scheme.targets[digit[j]]) > scheme.tolerance
        todo = todo[:missed]
    outcome.failed[todo] = True


@kernel
def write_verify(  # type: ignore[no-untyped-def]
    law, state, read, cost, target, tolerance, tries, digit, digits, cells, key, outcome
):
    """Fill the `outcome` of the cells programmed to one digit: see `programming.WriteVerifyProgrammer`."""
    todo = np.flatnonzero(digits == digit)
    for attempt in range(tries):
        missed = 0
        for start in range(0, len(todo), BLOCK):
            places, later = todo[start : start + BLOCK], min(attempt, 1)
            features, normals = _features(law, _counters(cells, places), attempt, key)
            r, measured = _states_and_reads(state, read, features[0], normals)
            for j in range(len(places)):
                cell = places[j]
                outcome.r[cell] = r[j]
                outcome.pulses[cell] += cost.earlier_pulses[later] + np.int32(1)
                outcome.verify_reads[cell] += np.int32(1)
                outcome.joules[cell] += (r[j] * cost.window_joules + cost.llrs_joules) + cost.earlier_joules[later]
                todo[missed] = cell
                missed += abs(measured[j] - target) > tolerance
        todo = todo[:missed]
    outcome.failed[todo] = True


@kernel
def _states_and_reads(state, read, ohms, normals):  # type: ignore[no-untyped-def]
    r, measured = np.empty_like(ohms), np.empty_like(ohms)
    for j in range(len(ohms)):
        r[j] = _state_of(state, ohms[j])
        measured[j] = _measured(read, r[j], normals[j])
    return r, measured


@inlined
def _counters(cells, places):  # type: ignore[no-untyped-def]
    counters = np.empty(len(places), np.uint64)
    for j in range(len(places)):
        counters[j] = cells[places[j]]
    return counters


@kernel
def _features(law, counters, attempt, key):  # type: ignore[no-untyped-def]
    """Return the features [F, n] of a try of the cells, and the standard normals [n] of its first read."""
    n, size = len(counters), len(law.gamma)
    offsets_and_scales = _offsets_and_scales(law, counters, key)
    each = (size + 2) // 2 * 2  # normals of a try
    words, normals = np.empty((4, n), np.uint32), np.empty((each * (attempt + 1), n), np.float32)
    for earlier in range(attempt + 1):
        random_words_of(words, counters, uint32(earlier), uint32(law.draws), key[0], key[1])
        fill_cell_normals(normals[each * earlier : each * (earlier + 1)], words)
    drawn, x = np.empty((size, n), np.float32), np.empty(n, np.float32)
    for feature in range(size):
        row = size * attempt + feature
        x[:] = _ZERO
        for column in range(row + 1):
            _add_scaled(x, law.factor[row, column], normals[each * (column // size) + column % size])
        mu, sigma = offsets_and_scales[feature], offsets_and_scales[size + feature]
        _denormalise(drawn[feature], x, mu, sigma, law.gamma[feature], law.limits[feature])
        if law.is_exponent[feature]:
            _exponential(drawn[feature])
    return drawn, normals[each * attempt + size]


@kernel
def _offsets_and_scales(law, counters, key):  # type: ignore[no-untyped-def]
    """Return the offsets mu and the scales sigma, [2 F, n] together, of the cells: a mixture of Gaussians."""
    n = len(counters)
    words, normals = np.empty((4, n), np.uint32), np.empty((4 * law.draws - 2, n), np.float32)
    component, drawn = np.zeros(n, np.int32), np.empty((len(law.mixture), n), np.float32)
    random_words_of(words, counters, uint32(0), uint32(0), key[0], key[1])
    for bound in law.bounds:
        _count_reached(component, words[0], bound)
    fill_cell_normals(normals[:2], words[2:])
    for draw in range(1, law.draws):
        random_words_of(words, counters, uint32(0), uint32(draw), key[0], key[1])
        fill_cell_normals(normals[4 * draw - 2 : 4 * draw + 2], words)
    for row in range(len(law.mixture)):
        _mix(drawn[row], component, normals, law.mixture[row])
    return drawn


@kernel
def _mix(drawn, component, normals, components):  # type: ignore[no-untyped-def]
    for j in range(len(drawn)):
        value = _of_component(components, component[j], 0)
        for column in range(1, len(components[0])):
            value += _of_component(components, component[j], column) * normals[column - 1, j]
        drawn[j] = value


@inlined
def _of_component(components, component, column):  # type: ignore[no-untyped-def]
    # by comparisons, as processors read a table far more slowly
    value = components[0][column]
    for k in range(1, len(components)):
        value = components[k][column] if component >= np.int32(k) else value
    return value


@kernel
def _count_reached(component, words, bound):  # type: ignore[no-untyped-def]
    for j in range(len(component)):
        component[j] += np.int32(words[j] >= bound)


@kernel
def _add_scaled(x, scale, y):  # type: ignore[no-untyped-def]
    for j in range(len(x)):
        x[j] += scale * y[j]


@kernel
def _polynomial(y, coefficients, x):  # type: ignore[no-untyped-def]
    y[:] = coefficients[0]
    for coefficient in coefficients[1:]:
        for j in range(len(y)):
            y[j] = y[j] * x[j] + coefficient


@kernel
def _denormalise(y, x, mu, sigma, gamma, limits):  # type: ignore[no-untyped-def]
    for j in range(len(y)):
        own = gamma[0]
        for i in range(1, len(gamma)):
            own = own * x[j] + gamma[i]
        y[j] = min(max(own * sigma[j] + mu[j], limits[0]), limits[1])


@kernel
def _exponential(y):  # type: ignore[no-untyped-def]
    for j in range(len(y)):
        y[j] = exp2(y[j] * _LOG2_OF_10)


@inlined
def _state_of(state, ohms):  # type: ignore[no-untyped-def]
    return (state.llrs_siemens - _ONE / ohms) * state.state_per_siemens


@kernel
def _transitions(ramp, state, features):  # type: ignore[no-untyped-def]
    """Return the transitions of cells with the features [3, n]: see `ramp.ResetRamp.cells`."""
    lrs_ohms, reset_volts, hrs_ohms = features[0], features[1], features[2]
    lrs, slope, end = np.empty_like(lrs_ohms), np.empty_like(lrs_ohms), np.empty_like(lrs_ohms)
    llrs, hhrs, first = np.empty_like(lrs_ohms), np.empty_like(lrs_ohms), np.empty(len(lrs_ohms), np.int32)
    _polynomial(llrs, ramp.llrs_polynomial, reset_volts)
    _polynomial(hhrs, ramp.hhrs_polynomial, reset_volts)
    most = float32(ramp.pulses)
    for j in range(len(lrs)):
        lrs[j] = _state_of(state, lrs_ohms[j])
        end[j] = ramp.full_llrs + _state_of(state, hrs_ohms[j]) * ramp.full_window
        to_go = abs(ramp.full_volts - reset_volts[j])
        distance = exp2(log2(to_go) * ramp.exponent) if to_go != _ZERO else _ZERO
        slope[j] = (llrs[j] + lrs[j] * (hhrs[j] - llrs[j]) - end[j]) / distance
        count = np.floor((reset_volts[j] - ramp.start_volts) * ramp.pulses_per_volt) + _ONE
        first[j] = np.int32(min(max(count, _ZERO), most))
    return Transitions(lrs, first, slope, end)


@kernel
def _first_stops(ramp, read, digit, transitions, normals):  # type: ignore[no-untyped-def]
    """Return where the programmer reads first, and what it reads with the noise of standard `normals` [n]."""
    sent, r, measured = _pulses_to(ramp, digit, transitions), np.empty_like(normals), np.empty_like(normals)
    lrs, first, slope, end = transitions
    for j in range(len(r)):
        r[j] = _state_after(ramp, lrs[j], first[j], slope[j], end[j], sent[j])
    for j in range(len(r)):
        measured[j] = _measured(read, r[j], normals[j])
    return Stops(sent, r, measured)


@kernel
def _pulses_to(ramp, digit, transitions):  # type: ignore[no-untyped-def]
    """Return the number of pulses [n] to each cell's threshold, at most all: see `ramp.ResetRamp.pulses_to`."""
    n, size = len(digit), ramp.bounds.shape[1]
    lrs, first, slope, end = transitions
    bounds, distance = ramp.bounds.ravel(), ramp.distance
    sent, row = np.zeros(n, np.int32), np.empty(n, np.uint32)
    for j in range(n):
        row[j] = uint32(digit[j]) * uint32(size)
    bit = 0
    while size >> (bit + 1):
        bit += 1
    while bit:  # all cells a bit at a time, so that they do not wait for memory one after the other
        bit -= 1
        step = np.int32(1 << bit)
        for j in range(n):
            pulse = uint32(sent[j] + np.int32(step - np.int32(1)))
            falls_short = slope[j] * distance[pulse] + end[j] > bounds[uint32(row[j] + pulse)]
            sent[j] += np.int32(falls_short) << np.int32(bit)  # by arithmetic: as a branch it could not be predicted
    most = np.int32(ramp.pulses)
    for j in range(n):
        is_there = lrs[j] >= ramp.thresholds[digit[j]]
        sent[j] = np.int32(0) if is_there else min(np.int32(max(sent[j], first[j]) + np.int32(1)), most)
    return sent


@inlined
def _state_after(ramp, lrs, first, slope, end_amperes, sent):  # type: ignore[no-untyped-def]
    pulse = uint32(max(sent - np.int32(1), np.int32(0)))
    moved = (slope * ramp.distance[pulse] + end_amperes - ramp.llrs[pulse]) / ramp.window[pulse]
    return moved if sent > first else lrs


@inlined
def _measured(read, r, normal):  # type: ignore[no-untyped-def]
    current = r * read.slope + read.offset
    current += normal * np.sqrt(max(current, _ZERO) * read.variance_per_current)
    code = min(max(np.rint(current * read.codes_per_current), _ZERO), read.max_code)
    return code * read.step if read.codes_per_current > _ZERO else current


@kernel
def _read_on(ramp, read, targets, counters, attempt, draw, key, transitions, stops):  # type: ignore[no-untyped-def]
    """Send a pulse and read again wherever a reading is above its target, until none is or the ramp ends."""
    (lrs, first, slope, end), (sent, r, measured) = transitions, stops
    most = np.int32(ramp.pulses)
    going_on, column = np.empty(len(r), np.uint32), np.empty(len(r), np.uint32)
    left = 0
    for j in range(len(r)):
        going_on[left] = uint32(j)
        left += (measured[j] > targets[j]) & (sent[j] < most)
    while left:
        own, words, normals = np.empty(left, np.uint64), np.empty((4, left), np.uint32), np.empty((4, left), np.float32)
        for i in range(left):
            own[i], column[i] = counters[going_on[i]], uint32(i)
        random_words_of(words, own, uint32(attempt), uint32(draw), key[0], key[1])
        fill_cell_normals(normals, words)
        for ahead in range(4):
            still = 0
            for i in range(left):
                j = going_on[i]
                sent[j] += np.int32(1)
                r[j] = _state_after(ramp, lrs[j], first[j], slope[j], end[j], sent[j])
                measured[j] = _measured(read, r[j], normals[ahead, column[i]])
                going_on[still], column[still] = j, column[i]
                still += (measured[j] > targets[j]) & (sent[j] < most)
            left = still
        draw += 1


@kernel
def _add_try(ramp, cost, pulse_seconds, places, transitions, stops, outcome):  # type: ignore[no-untyped-def]
    llrs, window, distance, constant = ramp.work[0], ramp.work[1], ramp.work[2], ramp.work[3]
    (lrs, first, slope, end), (sent, r, _) = transitions, stops
    for j in range(len(places)):
        cell, after, still = places[j], sent[j], min(sent[j], first[j])
        work = llrs[still] + lrs[j] * window[still]
        work = work + slope[j] * (distance[after] - distance[still]) + end[j] * (constant[after] - constant[still])
        last_set = lrs[j] * cost.window_joules + cost.llrs_joules
        outcome.r[cell] = r[j]
        outcome.pulses[cell] += after + cost.earlier_pulses[0] + np.int32(1)
        outcome.verify_reads[cell] += after + np.int32(1)
        outcome.joules[cell] += (work * pulse_seconds + last_set) + cost.earlier_joules[0]
