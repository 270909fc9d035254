"""Fake quantisers: their grids are the hardware's, their gradients those of LSQ."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from memsim.crossbar import convert, encode
from memsim.nn.quantisers import (
    ActivationQuantiser,
    QuantisedLinear,
    WeightQuantiser,
    quantiser_tensors,
    restore_quantisers,
    trained_scales,
)
from memsim.spec import BinaryPlanes

WEIGHT = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))


@given(
    values=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=50),
    full_scale=st.floats(0.125, 16, width=32),
    bits=st.integers(2, 12),
)
def test_activations_have_the_codes_of_the_dac(values: list[float], full_scale: float, bits: int) -> None:
    x, range_ = torch.tensor(values), torch.tensor(full_scale)
    rounded = ActivationQuantiser(bits, range_)(x)
    largest = (1 << (bits - 1)) - 1
    codes = convert.dac_codes(x, range_, bits)
    assert torch.equal(codes, (rounded * largest / full_scale).round())
    assert rounded.abs().max() <= full_scale * (1 + 1e-6)
    inside = x.abs() <= full_scale
    assert ((rounded - x).abs()[inside] <= full_scale / largest * (0.5 + 1e-4)).all()


@given(bits=st.integers(2, 12), per_channel=st.booleans())
def test_weights_have_the_levels_of_mapping(bits: int, per_channel: bool) -> None:
    config = BinaryPlanes(scale="per_channel" if per_channel else "per_tensor")
    quantiser = WeightQuantiser.fitted(WEIGHT, bits, "lsq", config)
    scale = encode.fit_scale(WEIGHT, bits, config)
    levels = encode.quantise(WEIGHT, scale, bits)
    assert torch.equal(quantiser.levels(WEIGHT), levels.float())
    assert torch.equal(quantiser(WEIGHT), levels * scale[:, None])
    assert quantiser.scale.requires_grad


def soft(x: Tensor, step: Tensor, anchor_x: Tensor, anchor_step: Tensor, largest: int) -> Tensor:
    """What LSQ differentiates: clamp(x / step) + (the rounding's error, held fixed), times step."""
    fraction = (x / step).clamp(-largest, largest)
    at_anchor = (anchor_x / anchor_step).clamp(-largest, largest)
    return (fraction + (at_anchor.round() - at_anchor)) * step


def difference_quotient(f, at: Tensor, h: float = 1e-5) -> Tensor:
    """The gradient of the scalar `f` at `at` [n], by central differences."""
    result = torch.zeros_like(at)
    for i in range(at.numel()):
        up, down = at.clone(), at.clone()
        up[i] += h
        down[i] -= h
        result[i] = (f(up) - f(down)) / (2 * h)
    return result


@pytest.mark.parametrize("channels", [1, 6])
def test_weight_gradients_are_those_of_lsq(channels: int) -> None:
    weight = WEIGHT.double().requires_grad_()
    scale = torch.linspace(0.5, 0.8, channels, dtype=torch.float64)
    quantiser = WeightQuantiser(3, scale.clone())
    towards = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (quantiser(weight) * towards).sum().backward()

    held = weight.detach()
    found = difference_quotient(lambda s: (soft(held, s[:, None], held, scale[:, None], 3) * towards).sum(), scale)
    shared = weight.numel() // channels
    assert torch.allclose(quantiser.scale.grad, found / (shared * 3) ** 0.5, rtol=1e-6)
    assert torch.equal(weight.grad, towards * (held.abs() <= 3 * scale[:, None]))


def test_range_gradients_are_those_of_lsq() -> None:
    x = WEIGHT.clone().requires_grad_()
    quantiser = ActivationQuantiser(4, torch.tensor(1.5))
    quantiser(x).sum().backward()
    step, codes = 1.5 / 7, convert.dac_codes(WEIGHT, 1.5, 4)
    inside = WEIGHT.abs() <= 1.5
    by_hand = (codes - inside * WEIGHT / step).sum() / 7 / (40 * 7) ** 0.5
    assert torch.allclose(quantiser.range.grad, by_hand, rtol=1e-4)
    assert torch.equal(x.grad, inside.float())


def test_observers_never_shrink_and_only_watch_training() -> None:
    weights = WeightQuantiser(3, torch.tensor([0.1]), "minmax")
    inputs = ActivationQuantiser(8, torch.tensor(0.0), "minmax")
    for largest, expected in ((6.0, 6.0), (3.0, 6.0), (9.0, 9.0)):
        x = torch.tensor([[0.5, -largest]])
        weights(x), inputs(x)
        assert (weights.scale.item(), inputs.range.item()) == pytest.approx((expected / 3, expected))
    weights.eval()(10 * x), inputs.eval()(10 * x)
    assert (weights.scale.item(), inputs.range.item()) == pytest.approx((3.0, 9.0))
    assert not list(weights.parameters()) + list(inputs.parameters())


def layer_of(bits: int, linear: nn.Linear, full_scale: float = 4.0) -> QuantisedLinear:
    layer = QuantisedLinear.from_float(linear)
    layer.weight_quantiser = WeightQuantiser.fitted(linear.weight, bits, "lsq", BinaryPlanes())
    layer.input_quantiser = ActivationQuantiser(bits, torch.tensor(full_scale))
    return layer


def test_a_layer_of_16_bits_computes_as_the_float_one() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 6)
    layer = layer_of(16, linear, float(WEIGHT.abs().max()))
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    # errors of half a step, 1.5e-5 of the largest weight and input, in sums of 40 products
    assert torch.allclose(layer(WEIGHT), linear(WEIGHT), atol=2e-4)
    bare = QuantisedLinear.from_float(linear)
    assert torch.equal(bare(WEIGHT), WEIGHT @ linear.weight.T + linear.bias)


def test_tensors_keep_their_names_and_give_the_quantisers_back() -> None:
    net = nn.Sequential(nn.Linear(40, 6), nn.Linear(6, 3))
    names = list(net.state_dict())
    x, digital = WEIGHT, nn.Sequential(layer_of(3, net[0]), layer_of(2, net[1], 1.0))
    state = digital.state_dict()
    assert set(names) < set(state)
    assert sorted(set(state) - set(names)) == sorted(quantiser_tensors(state))
    assert {layer: bits for layer, (bits, _) in trained_scales(state).items()} == {"0": 3, "1": 2}

    again = nn.Sequential(nn.Linear(40, 6), nn.Linear(6, 3))
    restore_quantisers(again, state)
    again.load_state_dict(state, assign=True)
    assert torch.equal(again(x), digital(x))
    assert [module.weight_quantiser.largest for module in again] == [3, 1]


def test_quantisers_of_other_layers_are_left_to_the_loading_of_the_state() -> None:
    net = nn.Sequential(nn.Linear(40, 6))
    restore_quantisers(net, {"9.weight_quantiser.bits": torch.tensor(3), "9.weight_quantiser.scale": torch.ones(1)})
    assert type(net[0]) is nn.Linear
