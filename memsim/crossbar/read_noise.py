"""Standard normal numbers for read noise.

Every number is a function of (key, frame, row tile, column) alone, so it does not depend on the chunks, the device or
the number of threads of a read. The counter of `memsim.portable` is (column modulo a quarter of the columns, frame, row
tile, 0); its four words give the normals of the four columns that lie a quarter apart. `compiled` has the same for
CPUs, ten times as fast, and `fused` for GPUs, up to the last bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.portable.elementwise import normal_pair, random_words


def standard_normals(key: int, first_frame: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return normals of `shape` [row_tiles, n, columns], float32, for the frames from `first_frame` on.

    The number of columns must be a multiple of 4.
    """
    tiles, n, columns = shape
    column = torch.arange(columns // 4, device=device)
    frame = torch.arange(first_frame, first_frame + n, device=device)[:, None]
    tile = torch.arange(tiles, device=device)[:, None, None]
    words = random_words(key, (frame << 32) + column, tile)
    return torch.cat([*normal_pair(*words[:2]), *normal_pair(*words[2:])], dim=2)
