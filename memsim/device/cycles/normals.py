"""Standard normals of cells, two for each two random words.

They end at 5.77, as do those that torch draws. Further out, where one cell in 10^8 would be, the polynomials of a
device model have no meaning: the resistance of a real cell is positive, that of a polynomial need not be.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from memsim.portable.compiled import normal_pairs
from memsim.portable.constants import WORD
from memsim.portable.elementwise import normal_pair
from memsim.portable.kernels import kernel

LEAST_RADIUS_WORD = 256
"""The word that smaller ones count as, where they give the radius of two normals."""
LARGEST_NORMAL = math.sqrt(-2.0 * math.log((LEAST_RADIUS_WORD + 0.5) * WORD))
"""The largest magnitude of a normal."""

_LEAST_RADIUS_WORD = np.uint32(LEAST_RADIUS_WORD)


def cell_normals(*words: Tensor) -> list[Tensor]:
    """Return as many normals, [n] each, as there are random words [n], two for each two of them."""
    pairs = zip(words[::2], words[1::2], strict=True)
    return [normal for radius, angle in pairs for normal in normal_pair(radius.clamp(min=LEAST_RADIUS_WORD), angle)]


@kernel
def fill_cell_normals(normals, words):  # type: ignore[no-untyped-def]
    """Fill the rows of `normals` from as many rows of random `words` as `cell_normals` does; it changes the words."""
    for row in range(0, len(normals), 2):
        radius_words = words[row]
        for j in range(len(radius_words)):
            radius_words[j] = max(radius_words[j], _LEAST_RADIUS_WORD)
        normal_pairs(normals[row], normals[row + 1], radius_words, words[row + 1])
