"""Randomness by key: every draw comes from a generator derived from what it is for.

A result then depends on the seed and on the name of the thing drawn for, and not on the order of layers,
the size of chunks or the number of threads. There is no global generator.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed for `key`, for example ``derive_seed(seed, layer_name, "programming")``.

    torch's CPU generator uses the lower 32 bits of it.
    """
    plain = tuple(part if isinstance(part, str) else int(part) for part in key)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh `torch.Generator` on `device` whose state is a function of `key` alone."""
    return torch.Generator(device).manual_seed(derive_seed(*key))
