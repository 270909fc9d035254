"""Randomness by key: every draw comes from a generator that is derived from its purpose.

A result therefore depends on the seed, the layer and the purpose of the draw, and not on the order of layers, the size
of chunks or the number of threads. There is no global generator but in training, where networks of other libraries draw
from those of torch and numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*key: int | str) -> int:
    """Return a 63-bit seed for `key`, for example ``derive_seed(seed, layer_name, "programming")``.

    The CPU generator of torch uses its lower 32 bits.
    """
    plain = tuple(part if isinstance(part, str) else int(part) for part in key)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new `torch.Generator` on `device` whose state is a function of `key` alone."""
    return torch.Generator(device).manual_seed(derive_seed(*key))


def seed_global_generators(*key: int | str) -> None:
    """Seed the global generators of torch, from which dropout draws, and numpy, from which transformers' masks do."""
    seed = derive_seed(*key)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def global_generators_kept(cuda: Sequence[int]) -> Iterator[None]:
    """Leave the global generators of torch, on the CPU and the devices `cuda`, and of numpy as they were before."""
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(cuda):
            yield
    finally:
        np.random.set_state(state)
