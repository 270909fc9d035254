"""Randomness by key: every draw comes from a generator that is derived from its purpose.

A result therefore depends on the seed, the layer and the purpose of the draw, and not on the order of layers, the size
of chunks or the number of threads. There is no global generator.
"""

from __future__ import annotations

import hashlib

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
