"""The compilation of kernels by numba, and the threads that they are divided among.

Kernels take the types of numba that they name from here. Where numba is not installed none of them runs: `is_compiled`
says so, and torch operations of the same bits, the definitions of the kernels, take their place.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memsim.launch import is_first

try:
    import numba
except ImportError:
    numba = None  # type: ignore[assignment]

_types: Any = np if numba is None else numba
float32, float64 = _types.float32, _types.float64
int16, int32, uint16, uint32, uint64 = _types.int16, _types.int32, _types.uint16, _types.uint32, _types.uint64

logger = logging.getLogger("memsim")

NO_NUMBA = "numba is not installed: results are the same, and take several times as long; pip install numba"
NO_CACHE = (
    "compiled code cannot be kept on disk, so that every process compiles it anew, which takes some seconds; "
    "set NUMBA_CACHE_DIR to a folder that can be written"
)


def kernel(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile `function` when it is first called, and keep the result on disk for later processes where possible.

    `options` are numba's. Without `fastmath` a kernel rounds every operation by itself, even if its caller does not:
    numba would pass the caller's `fastmath` on, and keep the result for other callers, too. Without numba `function` is
    returned as it is, and nothing may call it.
    """
    if numba is None:
        return function
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False} | options
    try:
        compiled = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache is writable
        _uncached.add(function.__qualname__)
        return numba.njit(**settings)(function)  # type: ignore[no-any-return]
    if not hasattr(compiled, "_cache"):  # NUMBA_DISABLE_JIT is set
        return compiled  # type: ignore[no-any-return]
    save = compiled._cache.save_overload

    def save_if_possible(*code: Any) -> None:
        try:
            save(*code)
        except OSError:  # the disk is full
            _uncached.add(function.__qualname__)

    compiled._cache.save_overload = save_if_possible
    return compiled  # type: ignore[no-any-return]


def is_compiled(tensor: Tensor) -> bool:
    """Whether kernels work on `tensor`: it is on a CPU, and numba is installed. It warns where that is slow."""
    if not tensor.is_cpu:
        return False
    warn_if_slow()
    return numba is not None


def warn_if_slow() -> None:
    """Warn, once, where numba is missing or keeps no code on disk.

    Processes that share the work of another one leave it to that one, which calls this before it starts them.
    """
    if numba is None:
        _say(NO_NUMBA)
    elif _uncached:
        _say(NO_CACHE)


@cache
def _say(message: str) -> None:
    if is_first() and multiprocessing.parent_process() is None:
        logger.warning(message)


_uncached: set[str] = set()
"""The kernels whose code is not kept on disk."""


inlined = partial(kernel, inline="always")
"""Compile a function as a part of each kernel that calls it, whose `fastmath` then holds for it, too."""


def in_threads(part: Callable[[int, int], int], n: int, size: int | None = None) -> int:
    """Return the sum of `part(first, last)` over [0, n), in pieces of `size` (by default one for each thread of torch).

    A part that asks for threads itself gets none but its own.
    """
    threads = 1 if _this_thread.is_at_work else torch.get_num_threads()
    size = size or max(1, -(-n // threads))
    pieces = [(first, min(first + size, n)) for first in range(0, n, size)]
    threads = min(threads, len(pieces))
    if threads <= 1:
        return sum(part(*piece) for piece in pieces)
    rest, sums, errors = iter(pieces), list[int](), list[BaseException]()

    def work() -> None:
        _this_thread.is_at_work = True
        try:
            for piece in rest:  # a thread that is late takes fewer
                sums.append(part(*piece))
        except BaseException as error:  # none may pass through the foreign code that calls this
            errors.append(error)
        finally:
            _this_thread.is_at_work = False

    if has_torch_threads():
        _start_torch_threads()(_Work(lambda _: work()), None, threads, 0)
    else:
        others = [_pool(threads, os.getpid()).submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()
    if errors:
        raise errors[0]
    return sum(sums)


def has_torch_threads() -> bool:
    """Whether `in_threads` runs on torch's own threads, within which an operation of torch takes only its own thread.

    Threads of a pool, which do it otherwise, compete with torch's: GNU's OpenMP lets these spin for milliseconds after
    each operation. A forked process inherits torch's threads without their bodies, so that using them would hang.
    """
    return os.getpid() == _PROCESS and _start_torch_threads() is not None


class _ThisThread(threading.local):
    is_at_work = False


_this_thread = _ThisThread()
_PROCESS = os.getpid()
_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _start_torch_threads() -> Any:
    """Return the function by which compiled code starts a parallel region of OpenMP; None where torch has none.

    ``GOMP_parallel(function, data, threads, flags)`` calls `function(data)` in each thread. It is in the binary
    interface of GNU's OpenMP, and LLVM's and Intel's on Linux have it, too.
    """
    if not torch.backends.openmp.is_available():
        return None
    try:
        start = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # looked up in the libraries that torch was linked with
    except (AttributeError, OSError):
        return None
    start.argtypes, start.restype = (_Work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return start


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
