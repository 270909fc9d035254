"""Precision of matrix products: whether a device multiplies bfloat16 faster than float32."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether `device` has units for products of bfloat16: some CPUs, and GPUs from compute capability 8.0 on.

    Without them torch emulates such products, which takes up to 25 times as long as float32 on a CPU with AVX2, and
    those of an LSTM fail there.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return a context in which matrix products are of bfloat16, where `precision` says so and `device` has units."""
    enabled = precision == "bfloat16" and multiplies_bfloat16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
