"""The portable functions in torch operations, which are their definition."""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.portable.constants import (
    COSINE,
    EXP2,
    LOG,
    LOG_2,
    LOW_32,
    PHILOX_INCREMENTS,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    SINE,
    SQRT_HALF_BITS,
    TURN_OF_WORD,
    WORD,
    split_key,
)

Words = tuple[Tensor, Tensor, Tensor, Tensor]
"""Four random words, each of 32 bits in an int64."""


def random_words(key: int, counter: Tensor, stream: Tensor | int = 0, draw: Tensor | int = 0) -> Words:
    """Return the four random words of each counter; shapes broadcast.

    `counter` (int64) counts within a stream: 64 bits. `stream` and `draw` (32 bits each) tell apart the uses of a key
    (64 bits): for cells the cycle and the number of the draw within it.
    """
    stream, draw = (torch.as_tensor(word, dtype=torch.int64, device=counter.device) for word in (stream, draw))
    return philox((counter & LOW_32, (counter >> 32) & LOW_32, stream, draw), key)


def philox(counter: Words, key: int) -> Words:
    """Return four random words for a counter of four words, each 32 bits in an int64; shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = split_key(key)
    for _ in range(PHILOX_ROUNDS):
        product_0, product_1 = c0 * PHILOX_MULTIPLIERS[0], c2 * PHILOX_MULTIPLIERS[1]  # modulo 2^64: int64 wraps
        c0, c1 = ((product_1 >> 32) & LOW_32) ^ c1 ^ k0, product_1 & LOW_32
        c2, c3 = ((product_0 >> 32) & LOW_32) ^ c3 ^ k1, product_0 & LOW_32
        k0, k1 = (k0 + PHILOX_INCREMENTS[0]) & LOW_32, (k1 + PHILOX_INCREMENTS[1]) & LOW_32
    return c0, c1, c2, c3


def normal_pair(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Return two standard normals, float32, for each two random words (Box and Muller, 1958); they reach 6.8."""
    fraction = (radius_word.float() + 0.5) * WORD
    radius = sqrt((log(fraction) * -2.0).clamp(min=0))

    # the angle in quarters of a turn; what remains is within an eighth
    quarter = ((angle_word + (1 << 29)) & LOW_32) >> 30
    rest = ((angle_word - (quarter << 30) + (1 << 31)) & LOW_32) - (1 << 31)
    angle = rest.float() * TURN_OF_WORD
    z = angle * angle
    sine = angle + (angle * z) * _polynomial(SINE, z)
    cosine = (1.0 - 0.5 * z) + (z * z) * _polynomial(COSINE, z)
    is_odd = (quarter & 1) != 0
    sine, cosine = torch.where(is_odd, cosine, sine), torch.where(is_odd, sine, cosine)
    sine = torch.where((quarter & 2) != 0, -sine, sine)
    cosine = torch.where(((quarter + 1) & 2) != 0, -cosine, cosine)
    return radius * sine, radius * cosine


def uniform(word: Tensor) -> Tensor:
    """Return numbers in [0, 1), float32, one for each random word, of which the upper 24 bits count."""
    return (word >> 8).float() * 2.0**-24


def sqrt(x: Tensor) -> Tensor:
    """Return the square root, float32, rounded correctly; torch's own of float32 numbers on a CPU is not."""
    return x.double().sqrt().float()


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return a * b + c of float32 numbers, rounded once, as the instruction of that name does (FMA).

    The product is exact in float64. Their sum there is rounded to odd (Boldo and Melquiond, IEEE Trans. Computers 57,
    2008), after which rounding to float32 gives what one rounding of the exact sum would.
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    added = total - product
    rest = (product - (total - added)) + (addend - added)  # what the sum left out (Knuth's two-sum)
    bits = total.view(torch.int64)
    is_inexact = ((rest > 0) | (rest < 0)) & (bits & 1 == 0)
    towards = torch.where((rest > 0) == (total > 0), 1, -1)
    return torch.where(is_inexact, bits + towards, bits).view(torch.float64).float()


def log(x: Tensor) -> Tensor:
    """Return the natural logarithm of normal positive numbers, float32."""
    exponent, m = _exponent_and_rest(x)
    return _log_of_rest(m) + exponent * LOG_2


def log2(x: Tensor) -> Tensor:
    """Return the logarithm to base 2 of normal positive numbers, float32."""
    exponent, m = _exponent_and_rest(x)
    return _log_of_rest(m) * (1 / LOG_2) + exponent


def exp2(x: Tensor) -> Tensor:
    """Return 2^x, float32; x is limited to +-126."""
    x = x.clamp(-126.0, 126.0)
    whole = x.round()
    rest = x - whole
    power = ((whole.int() + 127) << 23).view(torch.float32)
    return (1.0 + rest * _polynomial(EXP2, rest)) * power


def _exponent_and_rest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exponent e, float32, and m, where x = 2^e (1 + m) with 1 + m from sqrt(1/2) to sqrt(2)."""
    bits = x.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    return exponent.float(), (bits - (exponent << 23)).view(torch.float32) - 1.0


def _log_of_rest(m: Tensor) -> Tensor:
    square = m * m
    return ((_polynomial(LOG, m) * m) * square - 0.5 * square) + m


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    y = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        y = y * x + coefficient
    return y
