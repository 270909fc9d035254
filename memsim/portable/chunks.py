"""Chunks of cells, which bound the memory that they take and are divided among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from memsim.portable.kernels import in_threads

Result = TypeVar("Result")


def chunks(n: int, device: torch.device) -> Iterator[slice]:
    """Cut [0, n) into slices of a fixed size, which fits a CPU's cache or fills a GPU.

    On a CPU, torch runs operations of this size on one thread.
    """
    size = 2**15 if device.type == "cpu" else 2**19
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def of_chunks(function: Callable[[slice], Result], n: int, device: torch.device) -> list[Result]:
    """Return the result of `function` for each of the `chunks` of [0, n), in their order.

    On a CPU, chunks are divided among as many threads as torch has. They take turns, because neighbours take alike.
    """
    parts = list(chunks(n, device))
    if device.type != "cpu":
        return [function(part) for part in parts]
    results: list[Result | None] = [None] * len(parts)
    threads = torch.get_num_threads()

    def take_turns(first: int, last: int) -> int:
        for thread in range(first, last):
            for index in range(thread, len(parts), threads):
                results[index] = function(parts[index])
        return 0

    in_threads(take_turns, threads)
    return results  # type: ignore[return-value]
