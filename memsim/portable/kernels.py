"""The compilation of kernels by numba, and the threads that they are divided among."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor


def kernel(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile `function` when it is first called, and keep the result on disk for later processes where possible.

    `options` are numba's. Without `fastmath` a kernel rounds every operation by itself, even if its caller does not:
    numba would pass the caller's `fastmath` on, and keep the result for other callers, too.
    """
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False} | options
    try:
        return njit(cache=True, **settings)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's cache is writable
        return njit(**settings)(function)  # type: ignore[no-any-return]


inlined = partial(kernel, inline="always")
"""Compile a function as a part of each kernel that calls it, whose `fastmath` then holds for it, too."""


def in_threads(part: Callable[[int, int], int], n: int) -> int:
    """Return the sum of `part(first, last)` over [0, n), which is cut into as many pieces as torch has threads."""
    threads = torch.get_num_threads()
    size = max(1, -(-n // threads))
    bounds = [(first, min(first + size, n)) for first in range(0, n, size)]
    others = [_pool(threads, os.getpid()).submit(part, *bound) for bound in bounds[1:]]
    return sum([part(*bound) for bound in bounds[:1]] + [other.result() for other in others])


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of this `process`: a forked process inherits the pool of its parent without its threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="memsim")


def as_array(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the values of `tensor`, which is on a CPU, as a contiguous array."""
    # torch's operations let other threads run, which costs a thread its turn: only those that are needed
    if tensor.requires_grad:
        tensor = tensor.detach()
    return (tensor if tensor.is_contiguous() else tensor.contiguous()).numpy()
