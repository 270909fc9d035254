"""The portable functions compiled for CPUs by numba, for use in kernels; `elementwise` says what they are.

Integers are cast at every step: numba would turn a sum of 32-bit integers into one of 64 bits, at which the float32
operations beside it run at half their width.
"""

from __future__ import annotations

import numpy as np

from memsim.portable import constants
from memsim.portable.kernels import float32, inlined, int32, kernel, uint32, uint64

_MULTIPLIER_0, _MULTIPLIER_1 = (np.uint64(multiplier) for multiplier in constants.PHILOX_MULTIPLIERS)
_INCREMENT_0, _INCREMENT_1 = (np.uint32(increment) for increment in constants.PHILOX_INCREMENTS)
_ROUNDS = constants.PHILOX_ROUNDS
_LOW, _32 = np.uint64(constants.LOW_32), np.uint64(32)
_LOG = tuple(np.float32(coefficient) for coefficient in constants.LOG)
_EXP2 = tuple(np.float32(coefficient) for coefficient in constants.EXP2)
_SINE = tuple(np.float32(coefficient) for coefficient in constants.SINE)
_COSINE = tuple(np.float32(coefficient) for coefficient in constants.COSINE)
_SQRT_HALF_BITS = np.int32(constants.SQRT_HALF_BITS)
_LOG_2, _PER_LOG_2 = np.float32(constants.LOG_2), np.float32(1 / constants.LOG_2)
_WORD, _TURN_OF_WORD, _24_BITS = np.float32(constants.WORD), np.float32(constants.TURN_OF_WORD), np.float32(2.0**-24)
_ZERO, _HALF, _ONE, _MINUS_2, _LARGEST = (np.float32(x) for x in (0, 0.5, 1, -2, 126))


@kernel
def random_words(words, first, stream, draw, key_0, key_1):  # type: ignore[no-untyped-def]
    """Fill `words` [4, n] (uint32) with the random words of the counters `first` (64 bits) to `first` + n - 1."""
    for j in range(words.shape[1]):
        counter = uint64(first) + uint64(j)
        words[0, j], words[1, j], words[2, j], words[3, j] = _philox(counter, stream, draw, key_0, key_1)


@kernel
def random_words_of(words, counters, stream, draw, key_0, key_1):  # type: ignore[no-untyped-def]
    """Fill `words` [4, n] (uint32) with the random words of `counters` [n] (uint64)."""
    for j in range(words.shape[1]):
        words[0, j], words[1, j], words[2, j], words[3, j] = _philox(counters[j], stream, draw, key_0, key_1)


@kernel
def normal_pairs(first, second, radius_words, angle_words):  # type: ignore[no-untyped-def]
    """Fill `first` and `second` [n] (float32) with the normals of each two of the random words [n]."""
    for j in range(len(first)):
        first[j], second[j] = normal_pair(radius_words[j], angle_words[j])


@inlined
def _philox(counter, stream, draw, key_0, key_1):  # type: ignore[no-untyped-def]
    # in 64-bit lanes, whose upper halves are ignored: multiplying 32-bit lanes to 64 bits would take shuffles
    c0, c1, c2, c3 = counter, counter >> _32, uint64(stream), uint64(draw)
    k0, k1 = uint32(key_0), uint32(key_1)
    for _ in range(_ROUNDS):
        product_0, product_1 = (c0 & _LOW) * _MULTIPLIER_0, (c2 & _LOW) * _MULTIPLIER_1
        c0, c1 = (product_1 >> _32) ^ c1 ^ uint64(k0), product_1
        c2, c3 = (product_0 >> _32) ^ c3 ^ uint64(k1), product_0
        k0, k1 = uint32(k0 + _INCREMENT_0), uint32(k1 + _INCREMENT_1)
    return uint32(c0), uint32(c1), uint32(c2), uint32(c3)


@inlined
def normal_pair(radius_word, angle_word):  # type: ignore[no-untyped-def]
    """Return two standard normals for two random words."""
    radius = np.sqrt(max(log((float32(radius_word) + _HALF) * _WORD) * _MINUS_2, _ZERO))

    quarter = uint32(uint32(angle_word + np.uint32(1 << 29)) >> np.uint32(30))
    angle = float32(int32(uint32(angle_word - uint32(quarter << np.uint32(30))))) * _TURN_OF_WORD
    z = angle * angle
    sine = angle + (angle * z) * ((_SINE[0] * z + _SINE[1]) * z + _SINE[2])
    cosine = (_ONE - _HALF * z) + (z * z) * ((_COSINE[0] * z + _COSINE[1]) * z + _COSINE[2])
    is_odd = uint32(quarter & np.uint32(1)) != np.uint32(0)
    x, y = radius * (cosine if is_odd else sine), radius * (sine if is_odd else cosine)
    x_sign = int32(uint32(uint32(quarter & np.uint32(2)) << np.uint32(30)))
    y_sign = int32(uint32(uint32(uint32(quarter + np.uint32(1)) & np.uint32(2)) << np.uint32(30)))
    return np.int32(_bits(x) ^ x_sign).view(np.float32), np.int32(_bits(y) ^ y_sign).view(np.float32)


@inlined
def uniform(word):  # type: ignore[no-untyped-def]
    """Return a number in [0, 1) for a random word."""
    return float32(uint32(word >> np.uint32(8))) * _24_BITS


@inlined
def log(x):  # type: ignore[no-untyped-def]
    """Return the natural logarithm of a normal positive number."""
    exponent, m = _exponent_and_rest(x)
    return _log_of_rest(m) + exponent * _LOG_2


@inlined
def log2(x):  # type: ignore[no-untyped-def]
    """Return the logarithm to base 2 of a normal positive number."""
    exponent, m = _exponent_and_rest(x)
    return _log_of_rest(m) * _PER_LOG_2 + exponent


@inlined
def exp2(x):  # type: ignore[no-untyped-def]
    """Return 2^x; x is limited to +-126."""
    x = min(max(x, -_LARGEST), _LARGEST)
    whole = np.rint(x)
    rest = x - whole
    series = _EXP2[0]
    for power in range(1, 6):
        series = series * rest + _EXP2[power]
    power_of_2 = np.int32(int32(int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (_ONE + rest * series) * power_of_2


@inlined
def _exponent_and_rest(x):  # type: ignore[no-untyped-def]
    bits = _bits(x)
    exponent = int32(int32(bits - _SQRT_HALF_BITS) >> np.int32(23))
    return float32(exponent), np.int32(bits - int32(exponent << np.int32(23))).view(np.float32) - _ONE


@inlined
def _log_of_rest(m):  # type: ignore[no-untyped-def]
    series = _LOG[0]
    for power in range(1, 9):
        series = series * m + _LOG[power]
    square = m * m
    return ((series * m) * square - _HALF * square) + m


@inlined
def _bits(x):  # type: ignore[no-untyped-def]
    return np.float32(x).view(np.int32)
