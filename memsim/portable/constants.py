"""Constants of the portable functions; their polynomials are those of the Cephes library (S. L. Moshier)."""

import math

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10
LOW_32 = 0xFFFFFFFF

LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
"""The polynomial P of log(1 + m) = m - m^2 / 2 + m^3 P(m), highest power first, for 1 + m from sqrt(1/2) to sqrt(2)."""
SQRT_HALF_BITS = 0x3F3504F3
"""The bits of the float32 sqrt(1/2)."""
LOG_2 = math.log(2)
EXP2 = (
    *(1.535336188319500e-4, 1.339887440266574e-3, 9.618437357674640e-3),
    *(5.550332471162809e-2, 2.402264791363012e-1, 6.931472028550421e-1),
)
"""The polynomial P of 2^x = 1 + x P(x), highest power first, for x from -1/2 to 1/2."""
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568e-2)
"""The polynomials S and C of sin(a) = a + a^3 S(a^2) and cos(a) = 1 - a^2 / 2 + a^4 C(a^2), within pi/4 of 0."""

WORDS = 2.0**32
"""The number of 32-bit words."""
WORD = 2.0**-32
"""A unit of a 32-bit word, as a fraction of all words."""
TURN_OF_WORD = 2 * math.pi * 2.0**-32
"""The angle of a unit of a 32-bit word, in radians."""


def split_key(key: int) -> tuple[int, int]:
    """Return the two 32-bit words of a 64-bit key."""
    return key & LOW_32, (key >> 32) & LOW_32
