"""The functions of `elementwise`, compiled for CPUs by numba: one pass over memory each, divided among threads.

Codes and random words are the same as in `elementwise`. Logarithm, sine and cosine are polynomials that a compiler can
vectorise, accurate to the last bits of a float32 (coefficients of the single-precision functions of the Cephes library,
S. L. Moshier).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numba import float32, int32, njit, uint32, uint64
from torch import Tensor

from memsim.crossbar.convert import Conversion
from memsim.crossbar.read_noise import COSINE, PHILOX_INCREMENTS, PHILOX_MULTIPLIERS, PHILOX_ROUNDS, SINE, split_key


def look_up(
    x: Tensor, codes_per_input: float, tables: tuple[Tensor, ...], rows: int
) -> tuple[Tensor, Tensor | None, int]:
    """Look up signals and noise terms: see `elementwise.look_up`."""
    n, width = x.shape
    tiles = -(-width // rows)
    signals = torch.empty(tiles, n, rows)
    noise_terms = torch.empty(tiles, n, rows + 1) if len(tables) > 1 else torch.empty(0, 0, 0)
    arrays = (_numpy(x), np.float32(codes_per_input), _numpy(torch.stack(tables)), signals.numpy(), noise_terms.numpy())
    clipped = _in_threads(lambda first, last: _look_up(*arrays, first, last), n)
    return signals, noise_terms if len(tables) > 1 else None, clipped


def digitise(
    signals: Tensor,
    variances: Tensor | None,
    noise_key: int,
    first_frame: int,
    conversion: Conversion,
    significance: float,
    product: Tensor,
) -> int:
    """Convert column signals and add them up: see `elementwise.digitise`. Does not overwrite its arguments."""
    spread = np.empty((0, 0, 0), np.float32) if variances is None else _numpy(variances.float())
    offsets = np.empty((0, 0), np.float32) if conversion.offsets is None else _numpy(conversion.offsets)
    key = (np.uint32(word) for word in split_key(noise_key))
    weights = _numpy(significance * conversion.weights)
    adc = (conversion.max_code or 0, offsets, np.float32(conversion.bow))
    arrays = (_numpy(signals), spread, *key, first_frame, weights, *adc, product.detach().numpy())
    return _in_threads(lambda first, last: _digitise(*arrays, first, last), len(product))


def _numpy(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    return tensor.detach().contiguous().numpy()


def _in_threads(part: Callable[[int, int], int], n: int) -> int:
    """Return the sum of `part(first, last)` over [0, n), which is cut into as many pieces as torch has threads."""
    threads = torch.get_num_threads()
    size = max(1, -(-n // threads))
    bounds = [(first, min(first + size, n)) for first in range(0, n, size)]
    others = [_pool(threads, os.getpid()).submit(part, *bound) for bound in bounds[1:]]
    return sum([part(*bound) for bound in bounds[:1]] + [other.result() for other in others])


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of this `process`: a forked process inherits the pool of its parent without its threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="memsim-read")


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile `function` when it is first called, and keep the result on disk for later processes where possible."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's cache is writable
        return njit(**options)(function)  # type: ignore[no-any-return]


_MULTIPLIERS = tuple(np.uint64(multiplier) for multiplier in PHILOX_MULTIPLIERS)
_INCREMENTS = tuple(np.uint32(increment) for increment in PHILOX_INCREMENTS)
_LOG = tuple(
    np.float32(coefficient)
    for coefficient in (
        *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
        *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
    )
)
_SIN = tuple(np.float32(coefficient) for coefficient in SINE)
_COS = tuple(np.float32(coefficient) for coefficient in COSINE)
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_PER_WORD, _TURN_PER_WORD = np.float32(2.0**-32), np.float32(2 * math.pi * 2.0**-32)
_LOG_2 = np.float32(math.log(2))
_SQRT_HALF_BITS = np.int32(0x3F3504F3)


@_compiled
def _look_up(x, codes_per_input, tables, signals, noise_terms, first, last):  # type: ignore[no-untyped-def]
    tiles, _, rows = signals.shape
    width = x.shape[1]
    middle = tables.shape[1] // 2
    largest = float32(middle)
    clipped = 0
    for n in range(first, last):
        for tile in range(tiles):
            constant = _ZERO
            for row in range(rows):
                column = tile * rows + row
                code = np.rint(x[n, column] * codes_per_input) if column < width else _ZERO
                if not abs(code) <= largest:
                    clipped += abs(code) > largest
                    code = largest if code > largest else (-largest if code < -largest else _ZERO)
                index = middle + int(code)
                signals[tile, n, row] = tables[0, index]
                if len(noise_terms):
                    constant += tables[1, index]
                    noise_terms[tile, n, row] = tables[2, index]
            if len(noise_terms):
                noise_terms[tile, n, rows] = constant
    return clipped


@partial(_compiled, inline="always")
def _philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    for _ in range(PHILOX_ROUNDS):
        product_0, product_1 = uint64(c0) * _MULTIPLIERS[0], uint64(c2) * _MULTIPLIERS[1]
        high_0, high_1 = uint32(product_0 >> np.uint64(32)), uint32(product_1 >> np.uint64(32))
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, uint32(product_1), high_0 ^ c3 ^ k1, uint32(product_0)
        k0, k1 = uint32(k0 + _INCREMENTS[0]), uint32(k1 + _INCREMENTS[1])
    return c0, c1, c2, c3


@partial(_compiled, inline="always")
def _box_muller(radius_word, angle_word):  # type: ignore[no-untyped-def]
    u = (float32(radius_word) + _HALF) * _PER_WORD  # 2^exponent * (1 + m), with 1 + m from sqrt(1/2) to sqrt(2)
    bits = np.float32(u).view(np.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> np.int32(23)
    m = np.int32(bits - (exponent << np.int32(23))).view(np.float32) - _ONE
    series = _LOG[0]
    for power in range(1, 9):
        series = series * m + _LOG[power]
    log = series * m * m * m - _HALF * m * m + m + float32(exponent) * _LOG_2
    radius = np.sqrt(max(np.float32(-2) * log, _ZERO))

    # in quarters of a turn; the remaining angle is within an eighth
    quarter = uint32(angle_word + np.uint32(1 << 29)) >> np.uint32(30)
    angle = float32(int32(uint32(angle_word - (quarter << np.uint32(30))))) * _TURN_PER_WORD
    z = angle * angle
    sine = angle + angle * z * ((_SIN[0] * z + _SIN[1]) * z + _SIN[2])
    cosine = _ONE - _HALF * z + z * z * ((_COS[0] * z + _COS[1]) * z + _COS[2])
    is_odd = (quarter & np.uint32(1)) != 0
    sine, cosine = (cosine, sine) if is_odd else (sine, cosine)
    sine = -sine if (quarter & np.uint32(2)) != 0 else sine
    cosine = -cosine if ((quarter + np.uint32(1)) & np.uint32(2)) != 0 else cosine
    return radius * sine, radius * cosine


@partial(_compiled, fastmath={"contract", "nnan", "ninf", "nsz"})
def _standard_normals(out, k0, k1, frame, tile):  # type: ignore[no-untyped-def]
    quarter = len(out) // 4
    for j in range(quarter):
        a, b, c, d = _philox(uint32(j), frame, tile, np.uint32(0), k0, k1)
        out[j], out[quarter + j] = _box_muller(a, b)
        out[2 * quarter + j], out[3 * quarter + j] = _box_muller(c, d)


@partial(_compiled, fastmath={"contract"})
def _digitise(  # type: ignore[no-untyped-def]
    signals, variances, k0, k1, first_frame, weights, max_code, offsets, bow, product, first, last
):
    tiles, _, columns = signals.shape
    planes, out_features = weights.shape[1], product.shape[1]
    full_scale = float32(max_code)
    normals = np.zeros(columns, np.float32)
    clipped = 0
    for n in range(first, last):
        for tile in range(tiles):
            if len(variances):
                _standard_normals(normals, k0, k1, uint32(first_frame + n), uint32(tile))
            for plane in range(planes):
                weight = weights[tile, plane]
                for out in range(out_features):
                    column = plane * out_features + out
                    value = signals[tile, n, column]
                    if len(variances):
                        value += np.sqrt(max(variances[tile, n, column], _ZERO)) * normals[column]
                    if len(offsets):
                        value += offsets[tile, column]
                    if bow != _ZERO:
                        of_full_scale = min(max(value / full_scale, -_ONE), _ONE)
                        value += bow * of_full_scale * (_ONE - of_full_scale * of_full_scale)
                    if max_code:
                        value = np.rint(value)
                        clipped += abs(value) > full_scale
                        value = min(max(value, -full_scale), full_scale)
                    product[n, out] += weight * value
    return clipped
