"""Standard normal numbers for read noise, from a counter-based generator.

Every number is a function of (key, frame, row tile, column) alone, so it does not depend on the chunks, the device or
the number of threads of a read. Philox 4x32-10 (Salmon et al., SC 2011) turns the counter (column modulo a quarter of
the columns, frame, row tile, 0) into four words. The Box-Muller transform turns each two of them into two normals, for
the four columns that lie a quarter apart. With 32-bit words, normals reach 6.8 deviations.

This module is the definition, in torch operations for any device. `compiled` has the same for CPUs, ten times as fast,
and `fused` for GPUs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10
LOW_32 = 0xFFFFFFFF
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568e-2)
"""Polynomials of the compiled versions, accurate to the last bits of a float32 within an eighth of a turn (coefficients
of the single-precision functions of the Cephes library, S. L. Moshier)."""


def split_key(key: int) -> tuple[int, int]:
    """Return the two 32-bit words of a 64-bit key."""
    return key & LOW_32, (key >> 32) & LOW_32


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four random words for a counter of four words, each 32 bits in an int64; shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = split_key(key)
    for _ in range(PHILOX_ROUNDS):
        product_0, product_1 = c0 * PHILOX_MULTIPLIERS[0], c2 * PHILOX_MULTIPLIERS[1]  # modulo 2^64: int64 wraps
        c0, c1 = ((product_1 >> 32) & LOW_32) ^ c1 ^ k0, product_1 & LOW_32
        c2, c3 = ((product_0 >> 32) & LOW_32) ^ c3 ^ k1, product_0 & LOW_32
        k0, k1 = (k0 + PHILOX_INCREMENTS[0]) & LOW_32, (k1 + PHILOX_INCREMENTS[1]) & LOW_32
    return c0, c1, c2, c3


def standard_normals(key: int, first_frame: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return normals of `shape` [row_tiles, n, columns], float32, for the frames from `first_frame` on.

    The number of columns must be a multiple of 4.
    """
    tiles, n, columns = shape
    column = torch.arange(columns // 4, device=device)
    frame = torch.arange(first_frame, first_frame + n, device=device)[:, None]
    tile = torch.arange(tiles, device=device)[:, None, None]
    words = philox((column, frame, tile, torch.zeros_like(column)), key)
    return torch.cat([normal for pair in (words[:2], words[2:]) for normal in _box_muller(*pair)], dim=2)


def _box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    radius = ((radius_word.float() + 0.5) * 2.0**-32).log_().mul_(-2).sqrt_()
    angle = angle_word.float() * (2 * math.pi * 2.0**-32)
    return radius * torch.sin(angle), radius * torch.cos(angle)
