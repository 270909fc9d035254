"""Work on the cells of a matrix compiled for CPUs by numba, one pass over them each.

The functions with the definitions are `Tiling.digits_by_definition`, `programming_report.count`,
`ageing.relaxed` and `ageing.aged`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from memsim.device.interface import Outcome
from memsim.portable.compiled import exp2, normal_pair, random_words_of
from memsim.portable.draws import key_words
from memsim.portable.kernels import as_array, float64, int32, kernel

BLOCK = 1024
"""Neighbouring cells that are treated together, and whose sums are rounded together."""
_ZERO = np.int32(0)
_NOTHING, _ONE = np.float32(0), np.float32(1)


def digits(levels: Tensor, part: slice, copies: int, cell_bits: int) -> Tensor:
    """Return the digits, int32 [n], of the cells `part` of a flat shape: see `Tiling.digits`."""
    found = np.empty(part.stop - part.start, np.int32)
    _digits(found, as_array(levels.T).reshape(-1), part.start, copies, cell_bits)
    return torch.from_numpy(found)


def count(
    sums: Tensor, digits: Tensor, outcome: Outcome, slope: float, offset: float, targets: Tensor
) -> tuple[int, ...]:
    """Count the `outcome` of cells programmed to `digits` [n]: see `programming_report.count`."""
    cells = np.zeros(len(targets), np.int64)
    columns = (digits, outcome.r, outcome.joules, outcome.pulses, outcome.verify_reads, outcome.failed)
    scale = (np.float32(slope), np.float32(offset), as_array(targets))
    totals = _count(cells, sums.numpy(), *map(as_array, columns), *scale)
    return *totals, *cells.tolist()


def relaxed(r: Tensor, cells: Tensor, key: int, fraction: float, open_state: float) -> Tensor:
    """Return the states [n] of `cells` [n] after relaxation: see `ageing.relaxed`."""
    after = np.empty(len(r), np.float32)
    law = np.float32(fraction), np.float32(open_state)
    _relaxed(after, as_array(r), as_array(cells).view(np.uint64), *key_words(key), *law)
    return torch.from_numpy(after)


def aged(r: Tensor, cells: Tensor, key: int, exponent_std: float, exponent: float) -> Tensor:
    """Return the states [n] of `cells` [n] after drift: see `ageing.aged`."""
    after = np.empty(len(r), np.float32)
    law = np.float32(exponent_std), np.float32(exponent)
    _aged(after, as_array(r), as_array(cells).view(np.uint64), *key_words(key), *law)
    return torch.from_numpy(after)


@kernel
def _relaxed(after, r, cells, key_0, key_1, fraction, open_state):  # type: ignore[no-untyped-def]
    _normals(after, cells, key_0, key_1)
    for j in range(len(r)):
        after[j] = (r[j] - open_state) * max(after[j] * fraction + _ONE, _NOTHING) + open_state


@kernel
def _aged(after, r, cells, key_0, key_1, exponent_std, exponent):  # type: ignore[no-untyped-def]
    _normals(after, cells, key_0, key_1)
    for j in range(len(r)):
        left = exp2(after[j] * -exponent_std - exponent)
        after[j] = (_ONE - r[j]) * (_ONE - left) + r[j]


@kernel
def _normals(normals, cells, key_0, key_1):  # type: ignore[no-untyped-def]
    words = np.empty((4, BLOCK), np.uint32)
    for first in range(0, len(cells), BLOCK):
        last = min(first + BLOCK, len(cells))
        if last - first < BLOCK:
            words = np.empty((4, last - first), np.uint32)
        random_words_of(words, cells[first:last], np.uint32(0), np.uint32(0), key_0, key_1)
        _first_normals(normals[first:last], words[0], words[1])


@kernel
def _first_normals(normals, radius_words, angle_words):  # type: ignore[no-untyped-def]
    for j in range(len(normals)):
        normals[j], _ = normal_pair(radius_words[j], angle_words[j])


@kernel
def _digits(found, levels, first, copies, cell_bits):  # type: ignore[no-untyped-def]
    size = len(levels)
    start = 0
    while start < len(found):
        array, place = divmod(first + start, size)
        n = min(size - place, len(found) - start)
        slice_, is_negative = divmod(array // copies, 2)
        _digits_of_array(
            found[start : start + n],
            levels[place : place + n],
            np.int32(-1 if is_negative else 1),
            np.int32(slice_ * cell_bits),
            np.int32((1 << cell_bits) - 1),
        )
        start += n


@kernel
def _digits_of_array(found, levels, sign, shift, largest):  # type: ignore[no-untyped-def]
    for j in range(len(found)):
        magnitude = max(int32(sign * int32(levels[j])), _ZERO)
        found[j] = int32(magnitude >> shift) & largest


@kernel
def _count(  # type: ignore[no-untyped-def]
    cells, sums, digits, r, joules, pulses, verify_reads, failed, slope, offset, targets
):
    terms, squares = np.zeros(BLOCK), np.zeros(BLOCK)
    levels = len(targets)
    for index in range(len(sums)):
        first = index * BLOCK
        last = min(first + BLOCK, len(digits))
        if last - first < BLOCK:
            terms[:], squares[:] = 0.0, 0.0
        for j in range(last - first):
            terms[j] = joules[first + j]
        sums[index, 0] = _folded(terms)
        for digit in range(levels):
            here = digits[first:last], r[first:last]
            cells[digit] += _deviations(terms, squares, *here, np.int32(digit), slope, offset, targets[digit])
            sums[index, 1 + digit], sums[index, 1 + levels + digit] = _folded(terms), _folded(squares)
    return _totals(pulses, verify_reads, failed)


@kernel
def _totals(pulses, verify_reads, failed):  # type: ignore[no-untyped-def]
    all_pulses = reads = failures = 0
    most = _ZERO
    for j in range(len(pulses)):
        all_pulses += pulses[j]
        most = max(most, pulses[j])
        reads += verify_reads[j]
        failures += failed[j]
    return most, all_pulses, reads, failures


@kernel
def _deviations(terms, squares, digits, r, digit, slope, offset, target):  # type: ignore[no-untyped-def]
    cells = 0
    for j in range(len(digits)):
        here = digits[j] == digit
        deviation = float64((r[j] * slope + offset) - target) if here else 0.0
        terms[j], squares[j] = deviation, deviation * deviation
        cells += here
    return cells


@kernel
def _folded(terms):  # type: ignore[no-untyped-def]
    half = len(terms) // 2
    while half > 0:
        head, tail = terms[:half], terms[half : 2 * half]
        for j in range(half):
            head[j] += tail[j]
        half //= 2
    return terms[0]
