"""The count of operations beside the matrices of layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import memsim
from memsim.nn.operations import LayerStep, OperationStep, counting_operations


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.query, self.key, self.value, self.output = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + F.silu(self.output(mixed.transpose(1, 2).flatten(2)))


def counted(model: nn.Module, *inputs: torch.Tensor, times: int = 1):
    with torch.inference_mode(), counting_operations(model) as steps:
        for _ in range(times):
            model(*inputs)
    return steps


def test_a_block_by_hand() -> None:
    """Five frames: two heads of four features, 2 x 5 x 5 scores."""
    steps = counted(Block().eval(), torch.randn(1, 5, 8))
    assert [step.name for step in steps if isinstance(step, LayerStep)] == ["query", "key", "value", "output"]
    attention = next(step for step in steps if isinstance(step, OperationStep) and step.over_time)
    assert attention.macs == 50 * 4 * 2
    assert attention.special == 50
    norm = next(step for step in steps if step.name == "norm")
    assert isinstance(norm, OperationStep)
    assert (norm.elementwise, norm.special) == (6 * 40, 5)
    rest = next(step for step in steps if step.name == "" and isinstance(step, OperationStep) and not step.over_time)
    assert (rest.special, rest.elementwise) == (40, 40)  # SiLU, and the sum with x
    order = [step.name for step in steps]
    assert order.index("norm") < order.index("query") < steps.index(attention) < order.index("output")


def test_calls_are_counted() -> None:
    steps = counted(Block().eval(), torch.randn(1, 5, 8), times=3)
    assert {step.calls for step in steps} == {3}


@pytest.mark.parametrize("mapped", [False, True])
def test_products_of_layers_are_not_operations(mapped: bool) -> None:
    model: nn.Module = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    x = torch.randn(7, 6)
    if mapped:
        model = memsim.map_model(model, "physical", bits=3, calibration=[x])
    steps = counted(model, x)
    assert [step.name for step in steps if isinstance(step, LayerStep)] == ["0", "2"]
    operations = [step for step in steps if isinstance(step, OperationStep)]
    assert math.fsum(step.macs for step in operations) == 0
    assert math.fsum(step.elementwise for step in operations) == 7 * 4


@pytest.mark.parametrize("mapped", [False, True])
def test_attention_of_torch_and_convolutions(mapped: bool) -> None:
    """The products of a mapped convolution are reads; those of attention are the same on arrays or not."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.attention = nn.Conv1d(3, 8, 3, padding=1), attention

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.convolution(x).transpose(1, 2)
            return self.attention(hidden, hidden, hidden, need_weights=False)[0]

    model, x = Network().eval(), torch.randn(1, 3, 6)
    if mapped:
        model = memsim.map_model(model, "physical", bits=3, calibration=[x])
    operations = [step for step in counted(model, x) if isinstance(step, OperationStep)]
    assert math.fsum(step.macs for step in operations) == 2 * 6 * 6 * (4 + 4)
    assert all(step.over_time for step in operations if step.macs)


def test_a_spectrum_takes_the_operations_of_a_fast_fourier_transform() -> None:
    """A real transform of n values takes half of the 5 n log2 n additions and multiplications of a complex one."""

    class Spectrum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft(x).real

    (step,) = (step for step in counted(Spectrum(), torch.randn(3, 64)) if isinstance(step, OperationStep))
    assert (step.macs, step.special, step.elementwise) == (0, 0, 3 * 2.5 * 64 * 6)


def test_recurrent_matrices_are_told() -> None:
    model = nn.LSTM(4, 5, batch_first=True).eval()
    (layer,) = (step for step in counted(model, torch.randn(1, 3, 4)) if isinstance(step, LayerStep))
    assert sorted(layer.is_recurrent(name) for name in layer.sources) == [False, True]
