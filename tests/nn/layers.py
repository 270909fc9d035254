"""Layers with known weights, on exact and on physical arrays."""

from __future__ import annotations

from collections.abc import Callable, ItemsView
from typing import Any

import torch
from torch import Tensor, nn

import memsim
from memsim.nn.layer_adapters import mappable_layers, quantised_matrices
from memsim.nn.quantised_product import QuantisedProduct

EXACT = {"base": "ideal", "tile": {"rows": 16, "cols": 8}, "digital": []}
PHYSICAL = {"base": "physical", "weights": {"bits": 3}, "tile": {"rows": 16, "cols": 8}, "digital": []}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The layer that `make` makes, under the name "0", in evaluation mode; its weights are uniform in +-0.5."""
    net = nn.Sequential(make()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return net


def quantised_layers(net: nn.Module) -> ItemsView[str, QuantisedProduct]:
    """The names of the matrices of `net` that have quantisers, with their products."""
    return quantised_matrices(mappable_layers(net)).items()


def exact(net: nn.Module, **options: Any) -> nn.Module:
    return memsim.map_model(net, EXACT, bits=16, **options)


def is_close(got: Any, wanted: Any, tolerance: float = 2e-3) -> None:
    """16-bit weights round by 1.5e-5 of the largest of a row, so a sum of n products errs by some 1e-5 sqrt(n)."""
    if isinstance(wanted, tuple | list):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            is_close(one, other, tolerance)
    elif isinstance(wanted, Tensor):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    else:
        assert got == wanted
