"""The normals of cells: where they end, and equal bits in torch and in compiled code."""

from __future__ import annotations

import numpy as np
import torch

from memsim.device.cycles.normals import LARGEST_NORMAL, cell_normals, fill_cell_normals


def test_normals_end_where_words_are_smallest() -> None:
    """One word in 2^24 is below the least; random draws of a test would hardly ever meet one."""
    radius = torch.tensor([0, 1, 255, 256, 257, 2**31, 2**32 - 1]).repeat_interleave(4)
    angle = torch.tensor([0, 2**30, 2**31, 2**32 - 1]).repeat(7)
    words = (radius, angle, angle, radius)
    expected = torch.stack(cell_normals(*words))
    assert expected.abs().max() <= LARGEST_NORMAL * (1 + 1e-6)
    assert (expected[0][:12] == expected[0][12:16].repeat(3)).all()  # 0, 1 and 255 count as 256
    normals = np.empty((4, len(radius)), np.float32)
    fill_cell_normals(normals, torch.stack(words).numpy().astype(np.uint32))
    assert np.array_equal(normals.view(np.int32), expected.numpy().view(np.int32))
