"""Memory that the process keeps between chunks."""

from __future__ import annotations

from functools import cache

import torch


@cache
def keep_freed_memory() -> None:
    """Make glibc keep the memory that a chunk frees for the next chunk, which makes reads a third faster.

    The allocator keeps freed memory up to a multiple of the largest block (up to 32 MB) that was freed before, and this
    frees such a block, which is never written to. Other allocators are not affected.
    """
    torch.empty(30 << 20, dtype=torch.uint8)
