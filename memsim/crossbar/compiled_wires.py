"""The work of `wires: effective` that torch operations would spread over dozens of passes, compiled for CPUs by numba.

`line_resistance` and `effective` hold the definitions, in torch operations for any device.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memsim.portable.kernels import as_array, in_threads, kernel, uint16, uint32

LANES = 16
"""Drivers that are solved together, in the lanes of vector instructions; changes speed, never a result."""


def unit_responses(
    siemens: Tensor, segment_ohms: float, steps: list[tuple[float, float]], weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve linear cells of `siemens` [tiles, rows, cols]: see `IrDropArrays.unit_responses`.

    `steps` are the (momentum, gain) of each step of Chebyshev's semi-iteration.
    """
    tiles, rows, _ = siemens.shape
    own = torch.empty_like(siemens)
    sums = siemens.new_empty(weights.shape)
    cells = as_array(siemens)
    coefficients = np.array(steps, cells.dtype).reshape(len(steps), 2)
    ohms = cells.dtype.type(segment_ohms)
    arrays = (cells, ohms, coefficients, as_array(weights), own.numpy(), sums.numpy())
    in_threads(lambda first, last: _unit_responses(*arrays, first, last), tiles * -(-rows // LANES))
    return own, sums


def polynomials(u: Tensor, coefficients: Tensor, outputs: list[Tensor]) -> None:
    """Evaluate polynomials of `u` [tiles, n, rows]: see `effective.polynomials`. The first output is float32."""
    tiles, n, rows = u.shape
    first, *others = (output.view(tiles, n, -1, rows) for output in outputs)
    arrays = (as_array(u), as_array(coefficients), first.numpy(), *(_bits(other) for other in others))
    in_threads(lambda start, stop: _polynomials(*arrays, start, stop), tiles * n)


def add_up(total: Tensor, rest: Tensor, potentials: Tensor, slopes: Tensor, factors: Tensor) -> None:
    """Add the parts of column currents in bfloat16 to `total` [tiles, n, cols]: see `effective.add_up`."""
    tiles, n, cols = total.shape
    parts = [_bits(part.view(tiles, n, -1, cols)) for part in (rest, potentials, slopes)]
    arrays = (total.numpy(), *parts, as_array(factors))
    in_threads(lambda first, last: _add_up(*arrays, first, last), tiles * n)


def _bits(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the bits of bfloat16 numbers, of which numpy knows nothing."""
    return tensor.view(torch.int16).numpy().view(np.uint16)


@kernel
def _unit_responses(siemens, ohms, steps, weights, own, sums, first, last):  # type: ignore[no-untyped-def]
    """Solve blocks of LANES drivers; blocks `first` to `last` are counted over all tiles."""
    _, rows, cols = siemens.shape
    blocks = -(-rows // LANES)
    across, change = np.zeros((2, rows, cols, LANES), siemens.dtype)
    # along each line: the voltage lost so far, the current that flows on, and the current of all of its cells
    bit_lost, bit_onward, bit_total = np.zeros((3, cols, LANES), siemens.dtype)
    word_lost, word_onward = np.zeros((2, LANES), siemens.dtype)
    word_total = np.zeros((rows, LANES), siemens.dtype)
    for block in range(first, last):
        tile, start = block // blocks, block % blocks * LANES
        driven = min(LANES, rows - start)
        across[:], change[:], word_total[:], bit_total[:] = 0, 0, 0, 0
        for lane in range(driven):
            for col in range(cols):
                across[start + lane, col, lane] = 1
                bit_total[col, lane] = siemens[tile, start + lane, col]
                word_total[start + lane, lane] += siemens[tile, start + lane, col]
        for step in range(len(steps)):
            momentum, gain = steps[step]
            for col in range(cols):
                for lane in range(LANES):
                    bit_lost[col, lane] = 0
                    bit_onward[col, lane] = bit_total[col, lane]
                    bit_total[col, lane] = 0
            for row in range(rows):
                for lane in range(LANES):
                    word_lost[lane] = -1 if row == start + lane else 0  # the driver's volt
                    word_onward[lane] = word_total[row, lane]
                    word_total[row, lane] = 0
                for col in range(cols):
                    conductance = siemens[tile, row, col]
                    for lane in range(LANES):
                        volts = across[row, col, lane]
                        amperes = conductance * volts
                        word_lost[lane] += ohms * word_onward[lane]
                        word_onward[lane] -= amperes
                        bit_lost[col, lane] += ohms * bit_onward[col, lane]
                        bit_onward[col, lane] -= amperes
                        residual = volts + (word_lost[lane] + bit_lost[col, lane])
                        difference = momentum * change[row, col, lane] - gain * residual
                        change[row, col, lane] = difference
                        across[row, col, lane] = volts + difference
                        amperes = conductance * (volts + difference)
                        bit_total[col, lane] += amperes
                        word_total[row, lane] += amperes
        for lane in range(driven):
            for col in range(cols):
                own[tile, start + lane, col] = across[start + lane, col, lane]
        for kind in range(len(weights)):
            bit_total[:] = 0
            for row in range(rows):
                for col in range(cols):
                    weight = weights[kind, tile, row, col]
                    for lane in range(LANES):
                        bit_total[col, lane] += weight * across[row, col, lane]
            for lane in range(driven):
                for col in range(cols):
                    sums[kind, tile, start + lane, col] = bit_total[col, lane]
    return 0


@partial(kernel, fastmath={"contract"})
def _polynomials(volts, coefficients, alone, rest, bit_lines, slopes, mixes, first, last):  # type: ignore[no-untyped-def]
    n, rows = volts.shape[1:]
    value = np.empty(rows, np.float32)
    for pair in range(first, last):
        tile, frame = pair // n, pair % n
        _polynomial(volts, tile, frame, coefficients, 0, value)
        for row in range(rows):
            alone[tile, frame, 0, row] = value[row]
        done = 1
        for output in (rest, bit_lines, slopes, mixes):
            for i in range(output.shape[2]):
                _polynomial(volts, tile, frame, coefficients, done + i, value)
                for row in range(rows):
                    output[tile, frame, i, row] = _to_bfloat16(value[row])
            done += output.shape[2]
    return 0


@partial(kernel, inline="always")
def _polynomial(volts, tile, frame, coefficients, index, value):  # type: ignore[no-untyped-def]
    """Evaluate a polynomial without constant, whose coefficients are of V, V^2, ... (Horner's rule)."""
    highest = coefficients[index, -1]
    for row in range(len(value)):
        value[row] = highest * volts[tile, frame, row]
    for power in range(coefficients.shape[1] - 2, -1, -1):
        coefficient = coefficients[index, power]
        for row in range(len(value)):
            value[row] = (value[row] + coefficient) * volts[tile, frame, row]


@kernel
def _add_up(total, rest, potentials, slopes, factors, first, last):  # type: ignore[no-untyped-def]
    n, cols = total.shape[1:]
    for pair in range(first, last):
        tile, frame = pair // n, pair % n
        for col in range(cols):
            total[tile, frame, col] += _to_float32(rest[tile, frame, 0, col])
        for array in range(potentials.shape[2]):
            for col in range(cols):
                potential = _to_float32(potentials[tile, frame, array, col])
                total[tile, frame, col] += potential * _to_float32(slopes[tile, frame, array, col])
        for col in range(cols):
            total[tile, frame, col] *= factors[tile, 0, col]
    return 0


@partial(kernel, inline="always")
def _to_bfloat16(number):  # type: ignore[no-untyped-def]
    """Round a float32, not NaN, to the bits of the nearest bfloat16, halves to even."""
    bits = np.float32(number).view(np.uint32)
    return uint16(uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@partial(kernel, inline="always")
def _to_float32(bits):  # type: ignore[no-untyped-def]
    return np.uint32(uint32(bits) << np.uint32(16)).view(np.float32)
