"""Standard normal numbers for read noise: keyed by block, so that they are the same however they are drawn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from memsim import rng


class BlockNormals:
    """An endless sequence of blocks of standard normals, each from a generator of its own, keyed by (seed, index).

    On a CPU, where torch draws normals on one thread, as many blocks are drawn at a time as torch has threads.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def draw(self, first: int, blocks: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Blocks `first` to `first` + `blocks` - 1, [blocks, *shape], on `device`."""
        drawn = torch.empty(blocks, *shape, device=device)
        inference = torch.is_inference_mode_enabled()  # a thread has a mode of its own

        def fill(block: int) -> None:
            with torch.inference_mode(inference):
                drawn[block].normal_(generator=rng.generator(self._seed, first + block, device=device))

        threads = torch.get_num_threads()
        if device.type == "cpu" and threads > 1 and blocks > 1:
            list(_pool(threads).map(fill, range(blocks)))
        else:
            for block in range(blocks):
                fill(block)
        return drawn


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="memsim-noise")
