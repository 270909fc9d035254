"""The compiled rounding has the bits of the one in torch operations, and rounding on hardware its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memsim.hardware import load_hardware
from memsim.nn import compiled_rounding
from memsim.nn.linear import QuantisedLinear
from memsim.nn.rounding import ActivationQuantiser, WeightQuantiser
from memsim.nn.transfer import HardwareTransfer, Spread
from tests.crossbar.by_hand import statistics_of
from tests.nn.layers import normal

LARGE = compiled_rounding.LEAST_FOR_THREADS + 5
DTYPES = [None, torch.bfloat16]


def activations(method: Any = "lsq") -> nn.Module:
    return ActivationQuantiser(8, torch.tensor(2.1), method)


def weights(scale: Tensor, followed: Tensor | None = None) -> nn.Module:
    return WeightQuantiser(3, scale.clone(), "lsq", followed).eval()


def compiled_and_not(
    monkeypatch: pytest.MonkeyPatch, make: Any, x: Tensor, dtype: torch.dtype | None
) -> list[tuple[Tensor | None, ...]]:
    """The result of a quantiser, its gradient for `x`, and that for its scale: compiled, and in torch operations."""
    results = []
    for is_compiled in (True, False):
        if not is_compiled:
            monkeypatch.setattr(compiled_rounding, "can_round", lambda *_: False)
        quantiser, given = make(), x.clone().requires_grad_()
        rounded = quantiser(given, dtype)
        rounded.backward(normal(*x.shape, seed=5).to(rounded.dtype))
        scale = next(quantiser.parameters(), None)
        results.append((rounded.detach(), given.grad, None if scale is None else scale.grad))
    return results


def same_bits(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    bits = torch.int16 if one.dtype == torch.bfloat16 else torch.int32
    return one.dtype == other.dtype and torch.equal(one.view(bits), other.view(bits))


PER_CHANNEL = 0.05 + 0.01 * torch.arange(6)
CASES = {
    "activations": (activations, 2 * normal(3, 5, 19)),
    "activations for two threads": (activations, 2 * normal(1, LARGE)),
    "activations of one feature": (activations, 2 * normal(2, 5000, 1)),
    "no activations": (activations, normal(0, 7)),
    "activations, observed": (lambda: activations("minmax"), 2 * normal(3, 19)),
    "weights": (lambda: weights(PER_CHANNEL), 0.2 * normal(6, 19)),
    "weights, one scale": (lambda: weights(torch.tensor([0.07])), 0.2 * normal(6, 19)),
    "weights, followed": (lambda: weights(PER_CHANNEL, torch.tensor([0, 4])), 0.2 * normal(6, 19)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype | None) -> None:
    compiled, plain = compiled_and_not(monkeypatch, *CASES[name], dtype)
    assert all(same_bits(one, other) for one, other in zip(compiled, plain, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_or_at_the_middle_of_two_codes(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.5, 1.5, -2.5, 1e-42, -3e38])
    found = compiled_rounding.rounded(x, torch.tensor(1.0), None, 127, dtype)
    assert found[0].isnan()
    assert found[1:].tolist() == [127, -127, 0, 2, -2, 0, -127]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_layer_gives_what_the_hardware_gives_with_the_gradient_of_its_product(precision: torch.dtype) -> None:
    spec, x = load_hardware({"base": "physical", "weights": {"bits": 3}, "digital": []}), normal(2, 9, 30)
    results = {}
    for on_hardware in (False, True):
        torch.manual_seed(0)
        layer = QuantisedLinear.from_float(nn.Linear(30, 7, bias=False))
        layer.weight_quantiser = quantiser = WeightQuantiser.fitted(layer.weight, 3, "lsq", spec.weights)
        layer.input_quantiser = ActivationQuantiser(8, torch.tensor(2.1))
        levels, scale = quantiser.levels(layer.weight), quantiser.positive_scale().detach()
        transfer = HardwareTransfer("0", spec, 1)
        transfer.calibrate(levels, scale, statistics_of(x.flatten(0, 1)))
        transfer.spread = Spread(3, 1.0)
        layer.transfer = transfer if on_hardware else None
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            y = layer(given)
        assert y.dtype == (torch.float32 if on_hardware else precision)
        y.backward(normal(2, 9, 7, seed=5).to(y.dtype))
        results[on_hardware] = [given.grad, *(parameter.grad for parameter in layer.parameters())]
    # before: the sum of the product and of the hardware's difference from it, which rounds
    assert torch.equal(y.flatten(0, 1), transfer.programmed(levels, scale, 2.1)([x.flatten(0, 1)]))
    assert len(results[True]) == 4
    for found, wanted in zip(results[True], results[False], strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
