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

        def fill(some: range) -> None:
            with torch.inference_mode(inference):
                for block in some:
                    drawn[block].normal_(generator=rng.generator(self._seed, first + block, device=device))

        threads = torch.get_num_threads() if device.type == "cpu" else 1
        shares = [range(start, blocks, threads) for start in range(min(threads, blocks))]
        others = [_pool(threads).submit(fill, share) for share in shares[1:]]
        fill(shares[0])
        for other in others:
            other.result()
        return drawn


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="memsim-noise")
