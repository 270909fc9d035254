"""Chunks of cells, which bound the memory that they take and are divided among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from memsim.portable.kernels import in_threads


def chunks(n: int, device: torch.device) -> Iterator[slice]:
    """Cut [0, n) into slices of a fixed size, which fits a CPU's cache or fills a GPU.

    On a CPU, torch runs operations of this size on one thread.
    """
    size = 2**15 if device.type == "cpu" else 2**19
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def for_chunks(act: Callable[[slice], None], n: int, device: torch.device) -> None:
    """Call `act` with each of the `chunks` of [0, n).

    On a CPU, chunks are divided among as many threads as torch has. They take turns, because neighbours take alike.
    """
    parts = list(chunks(n, device))
    turns = torch.get_num_threads() if device.type == "cpu" else 1

    def take_turns(first: int, last: int) -> int:
        for turn in range(first, last):
            for part in parts[turn::turns]:
                act(part)
        return 0

    in_threads(take_turns, turns)
