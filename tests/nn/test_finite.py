from __future__ import annotations

import math

import torch
from torch import nn

from memsim.nn.finite import first_not_finite


class Reciprocal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 / x


def test_the_layer_that_made_it_is_named() -> None:
    inner = nn.Sequential(nn.ReLU(), Reciprocal(), nn.Linear(2, 2))
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(inner, nn.Tanh()))
    x = torch.tensor([[-1.0, 1.0]])
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
        assert first_not_finite(model, lambda: model(x)) == "1.0.1"
        assert first_not_finite(model, lambda: model(x.abs())) is None
        assert first_not_finite(model, lambda: model(x * math.nan)) is None  # it came in
    assert not any(module._forward_hooks for module in model.modules())


def test_what_no_layer_made_is_the_networks() -> None:
    model = Reciprocal()
    assert first_not_finite(model, lambda: model(torch.zeros(1))) == "the network"
