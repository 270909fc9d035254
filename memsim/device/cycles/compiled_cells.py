"""Cells over their cycles, compiled for CPUs by numba: the same bits as `features` and `cells`, which define them.

A block of cells, whose history stays in the cache of a core, draws cycle after cycle together, each step a loop over
the block. The cells of a block may be at different pulses: a cell's next cycle needs nothing of the others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memsim.device.cycles.features import (
    HISTORY_DRAW,
    OFFSETS_DRAW,
    History,
    component_bounds,
    history_factor,
    marginal_mixture,
)
from memsim.device.cycles.model import HRS, LOG2_OF_10, LRS, UR, US, DeviceModel
from memsim.device.cycles.normals import fill_cell_normals
from memsim.portable.compiled import exp2, log2, random_words_of
from memsim.portable.constants import split_key
from memsim.portable.kernels import as_array, inlined, int32, kernel, uint32

Floats = NDArray[np.float32]

BLOCK = 128
"""Cells that are simulated together; their history of ten cycles takes 20 KB."""

_ZERO, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
_LOG2_OF_10 = np.float32(LOG2_OF_10)
_NO_DRAW, _OFFSETS_DRAW, _HISTORY_DRAW = np.uint32(0), np.uint32(OFFSETS_DRAW), np.uint32(HISTORY_DRAW)


class Process(NamedTuple):
    """The distributions of the features of fresh cells and of their next cycles (mixture of K, process of order p)."""

    bounds: NDArray[np.uint32]  # [K - 1]: see `component_bounds`
    means: Floats  # [8, K]
    cholesky: Floats  # [K, 8, 8]
    history_factor: Floats  # [4p, normals]
    var: Floats  # [4, 4 (p + 1)]
    gamma: Floats  # [4, 5]


class Currents(NamedTuple):
    """The numbers of the current equations of a device model."""

    llrs: Floats  # [degree + 1]
    hhrs: Floats  # [degree + 1]
    llrs_siemens: np.float32
    per_window: np.float32
    full_volts: np.float32
    exponent: np.float32


def draw_variates(
    device: DeviceModel, cells: Tensor, key: int, cycles: int, history: History, order: int | None
) -> Tensor:
    """Draw normal variates [4, n, cycles]: see `features.draw_variates`."""
    drawn = torch.empty(4, len(cells), cycles)
    _draw_variates(drawn.numpy(), _counters(cells), *_key_words(key), _process(device, history, order))
    return drawn


def pulse_cells(
    device: DeviceModel, cells: Tensor, key: int, volts: Tensor, sequence: Tensor, history: History
) -> Tensor:
    """Return the states [n] of cells after their pulses: see `cells.pulse_cells`."""
    r = torch.empty(len(cells))
    pulses = as_array(volts.float()), as_array(sequence.int())
    arrays = _process(device, history, None), _currents(device)
    _pulse_cells(r.numpy(), _counters(cells), *_key_words(key), *pulses, *arrays)
    return r


def _counters(cells: Tensor) -> NDArray[np.uint64]:
    return as_array(cells).view(np.uint64)


def _key_words(key: int) -> tuple[np.uint32, np.uint32]:
    low, high = split_key(key)
    return np.uint32(low), np.uint32(high)


@lru_cache(maxsize=32)
def _process(device: DeviceModel, history: History, order: int | None) -> Process:
    means, cholesky = marginal_mixture(device, (HRS, US, LRS, UR))
    factor, var = history_factor(device, history, order), device.var_matrix(order).float()
    bounds = np.array(component_bounds(device), np.uint32)
    return Process(bounds, *(as_array(part) for part in (means, cholesky, factor, var, device.gamma.float())))


@lru_cache(maxsize=32)
def _currents(device: DeviceModel) -> Currents:
    llrs, hhrs = device.reference_conductances_siemens
    numbers = (llrs, 1.0 / (llrs - hhrs), device.reset_full_volts, device.reset_exponent)
    return Currents(as_array(device.llrs.float()), as_array(device.hhrs.float()), *map(np.float32, numbers))


class _Block(NamedTuple):
    """Arrays of a block of B cells."""

    counters: NDArray[np.uint64]  # [B]
    history: Floats  # [p, 4, B]: the last p cycles, as a ring
    offsets_and_scales: Floats  # [8, B]
    x: Floats  # [4, B]: the normal variates of the present cycle
    features: Floats  # [4, B]: of the present cycle, HRS in log10 ohm
    before: Floats  # [4, B]: the features of the cycle before
    normals: Floats  # [4, B]
    words: NDArray[np.uint32]  # [4, B]


@kernel
def _draw_variates(drawn, counters, k0, k1, process):  # type: ignore[no-untyped-def]
    block = _new_block(process)
    for first in range(0, len(counters), BLOCK):
        cells = min(BLOCK, len(counters) - first)
        _start(block, counters, first, k0, k1, process)
        for cycle in range(drawn.shape[2]):
            if cycle:
                _next_variates(block, cycle, k0, k1, process)
            for i in range(4):
                for j in range(cells):
                    drawn[i, first + j, cycle] = block.x[i, j]


@kernel
def _pulse_cells(r, counters, k0, k1, volts, sequence, process, currents):  # type: ignore[no-untyped-def]
    block = _new_block(process)
    pulse, goes_on, in_lrs = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    highest, states = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for first in range(0, len(counters), BLOCK):
        cells = min(BLOCK, len(counters) - first)
        _start(block, counters, first, k0, k1, process)
        pulse[:], highest[:], goes_on[:], in_lrs[:] = 0, _INFINITY, 1, 0
        goes_on[cells:] = 0
        _denormalise(block, goes_on, process.gamma)
        cycle = 0
        while _apply(block.features, volts, sequence[first : first + cells], pulse, highest, goes_on, in_lrs):
            cycle += 1
            _next_variates(block, cycle, k0, k1, process)
            _denormalise(block, goes_on, process.gamma)
        _states(states, block.features, block.before, in_lrs, highest, currents)
        r[first : first + cells] = states[:cells]


@kernel
def _new_block(process):  # type: ignore[no-untyped-def]
    order = process.var.shape[1] // 4 - 1
    return _Block(
        np.zeros(BLOCK, np.uint64),
        np.zeros((order, 4, BLOCK), np.float32),
        np.zeros((8, BLOCK), np.float32),
        np.zeros((4, BLOCK), np.float32),
        np.zeros((4, BLOCK), np.float32),
        np.zeros((4, BLOCK), np.float32),
        np.zeros((4, BLOCK), np.float32),
        np.zeros((4, BLOCK), np.uint32),
    )


@kernel
def _start(block, counters, first, k0, k1, process):  # type: ignore[no-untyped-def]
    """Draw the offsets, scales and history of the fresh cells from `first` on."""
    for j in range(BLOCK):
        block.counters[j] = counters[min(first + j, len(counters) - 1)]
    component = np.zeros(BLOCK, np.int32)
    random_words_of(block.words, block.counters, _NO_DRAW, _NO_DRAW, k0, k1)
    for bound in process.bounds:
        for j in range(BLOCK):
            component[j] += int32(block.words[0, j] >= bound)
    normals = np.empty((8, BLOCK), np.float32)
    _fill_normals(normals, block, _OFFSETS_DRAW, k0, k1)
    total = np.empty(BLOCK, np.float32)
    for i in range(8):
        for k in range(len(process.cholesky)):
            total[:] = process.means[i, k]
            for column in range(i + 1):
                _add_product(total, process.cholesky[k, i, column], normals[column])
            row = block.offsets_and_scales[i]
            for j in range(BLOCK):
                row[j] = total[j] if component[j] == k else row[j]
    order, count = len(block.history), process.history_factor.shape[1]
    normals = np.empty((count, BLOCK), np.float32)
    _fill_normals(normals, block, _HISTORY_DRAW, k0, k1)
    for cycle in range(order):
        for i in range(4):
            row = block.history[cycle, i]
            row[:] = _ZERO
            for column in range(count):
                factor = process.history_factor[4 * cycle + i, column]
                if factor != _ZERO:
                    _add_product(row, factor, normals[column])
    block.x[:] = block.history[order - 1]


@kernel
def _fill_normals(normals, block, draw, k0, k1):  # type: ignore[no-untyped-def]
    """Fill `normals` [4 calls, B] from the calls `draw` and those after it, of stream 0."""
    for row in range(0, len(normals), 4):
        random_words_of(block.words, block.counters, _NO_DRAW, uint32(draw + uint32(row // 4)), k0, k1)
        fill_cell_normals(normals[row : row + 4], block.words)


@kernel
def _add_product(total, factor, values):  # type: ignore[no-untyped-def]
    for j in range(BLOCK):
        total[j] += factor * values[j]


@kernel
def _next_variates(block, cycle, k0, k1, process):  # type: ignore[no-untyped-def]
    """Draw the normal variates of the `cycle` of all cells, which takes the place of the oldest in their history."""
    words, normals, x, var = block.words, block.normals, block.x, process.var
    random_words_of(words, block.counters, uint32(cycle), _NO_DRAW, k0, k1)
    fill_cell_normals(normals, words)
    x[:] = _ZERO
    _add_products(x, var, 0, normals)
    order = len(block.history)
    for lag in range(order):
        _add_products(x, var, 4 * (lag + 1), block.history[(cycle - 1 + lag) % order])
    block.history[(cycle - 1) % order] = x


@kernel
def _add_products(x, var, first, rows):  # type: ignore[no-untyped-def]
    """Add the four `rows` [4, B], times the columns of `var` from `first` on, to `x` [4, B], one after the other."""
    for i in range(4):
        a, b, c, d = var[i, first], var[i, first + 1], var[i, first + 2], var[i, first + 3]
        for j in range(BLOCK):
            x[i, j] = (((x[i, j] + a * rows[0, j]) + b * rows[1, j]) + c * rows[2, j]) + d * rows[3, j]


@kernel
def _denormalise(block, goes_on, gamma):  # type: ignore[no-untyped-def]
    """Set the features of those cells that go on, and of the cycle before, from the normal variates."""
    for i in range(4):
        for j in range(BLOCK):
            y = gamma[i, 0]
            for power in range(1, 5):
                y = y * block.x[i, j] + gamma[i, power]
            feature = y * block.offsets_and_scales[4 + i, j] + block.offsets_and_scales[i, j]
            now, before = block.features[i, j], block.before[i, j]
            block.before[i, j] = now if goes_on[j] else before
            block.features[i, j] = feature if goes_on[j] else now


@kernel
def _apply(features, volts, sequence, pulse, highest, goes_on, in_lrs):  # type: ignore[no-untyped-def]
    """Apply to each cell its pulses until it leaves LRS, at which its next cycle begins, or to the last one.

    `pulse` is the first that the cell has not had, `highest` the highest voltage since it left LRS. Returns the number
    of cells that go on.
    """
    pulses, count = volts.shape[1], 0
    for j in range(len(sequence)):
        if not goes_on[j]:
            continue
        of_cell, at = volts[sequence[j]], pulse[j]
        set_volts, reset_volts, most = features[US, j], features[UR, j], highest[j]
        while at < pulses and not of_cell[at] <= set_volts:
            most = max(most, of_cell[at])
            at += 1
        is_set = at < pulses
        at += 1
        while at < pulses and not of_cell[at] > reset_volts:
            at += 1
        highest[j], in_lrs[j], goes_on[j] = most, is_set, at < pulses
        if at < pulses:
            highest[j], pulse[j] = of_cell[at], at + 1
            count += 1
    return count


@kernel
def _states(r, features, before, in_lrs, highest, currents):  # type: ignore[no-untyped-def]
    """Return the states `r` [B] of cells in LRS, or where their `highest` voltage since they left it has taken them."""
    full = currents.full_volts
    full_llrs, full_window = _polynomial(currents.llrs, full), _window(full, currents)
    for j in range(len(r)):
        lrs = _state(features[LRS, j], currents)
        hrs = _state(exp2(features[HRS, j] * _LOG2_OF_10), currents)
        at, start = min(highest[j], full), before[UR, j]
        end_amperes = full_llrs + hrs * full_window
        start_amperes = _polynomial(currents.llrs, start) + _state(before[LRS, j], currents) * _window(start, currents)
        slope = (start_amperes - end_amperes) / _distance(start, currents)
        amperes = slope * _distance(at, currents) + end_amperes
        moved = (amperes - _polynomial(currents.llrs, at)) / _window(at, currents)
        r[j] = lrs if in_lrs[j] else (hrs if highest[j] >= full else moved)


@inlined
def _state(ohms, currents):  # type: ignore[no-untyped-def]
    return (currents.llrs_siemens - _ONE / ohms) * currents.per_window


@inlined
def _window(volts, currents):  # type: ignore[no-untyped-def]
    return _polynomial(currents.hhrs, volts) - _polynomial(currents.llrs, volts)


@inlined
def _polynomial(coefficients, x):  # type: ignore[no-untyped-def]
    y = coefficients[0]
    for power in range(1, len(coefficients)):
        y = y * x + coefficients[power]
    return y


@inlined
def _distance(volts, currents):  # type: ignore[no-untyped-def]
    distance = abs(currents.full_volts - volts)
    power = exp2(log2(distance) * currents.exponent)
    return power if distance > _ZERO else _ZERO
