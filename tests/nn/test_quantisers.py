"""Fake quantisers: the grids of the hardware, with the gradients of LSQ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import memsim
from memsim.crossbar import convert, encode
from memsim.errors import InputError
from memsim.hardware import BinaryPlanes
from memsim.nn.linear import QuantisedLinear
from memsim.nn.quantisers import quantiser_tensors, restore_quantisers, trained_scales
from memsim.nn.rounding import ActivationQuantiser, Method, WeightQuantiser
from memsim.nn.trained_transform import TrainedTransform

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


@pytest.mark.parametrize("rows", [7, 10, 40, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_scales_per_tile_are_those_of_the_plain_formula(dtype: torch.dtype, rows: int) -> None:
    """Against autograd of each tile alone, with its rounding error held fixed; the last tile may have fewer inputs."""
    weight = WEIGHT.to(dtype, copy=True).requires_grad_()
    config = BinaryPlanes(scale="per_tile")
    quantiser = WeightQuantiser.fitted(weight, 3, "lsq", config, rows)
    tiles = -(-weight.shape[1] // rows)
    assert quantiser.scale.shape == (tiles, len(weight))
    towards = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    rounded = quantiser(weight)
    (rounded * towards).sum().backward()
    levels = encode.quantise(weight.detach(), quantiser.scale.detach(), 3, rows)
    assert torch.equal(quantiser.levels(weight.detach()), levels.to(dtype))
    for tile in range(tiles):
        part = slice(tile * rows, min((tile + 1) * rows, weight.shape[1]))
        held, at = weight.detach()[:, part], quantiser.scale.detach()[tile]
        step = at.clone().requires_grad_()
        plain = soft(held, step[:, None], held, at[:, None], 3)
        assert torch.allclose(rounded[:, part], plain, atol=1e-6)
        (plain * towards[:, part]).sum().backward()
        wanted = step.grad / (held.shape[1] * 3) ** 0.5
        assert torch.allclose(quantiser.scale.grad[tile], wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(weight.grad[:, part], towards[:, part] * (held.abs() <= 3 * at[:, None]))


@pytest.mark.parametrize("method", ["lsq", "minmax"])
def test_scales_of_tiles_of_zeros_follow_what_comes(method: Method) -> None:
    config = BinaryPlanes(scale="per_tile", scale_method="mse" if method == "lsq" else "minmax")
    weight = WEIGHT.clone()
    weight[:3, 14:21] = 0
    quantiser = WeightQuantiser.fitted(weight, 4, method, config, 7).train()
    first = quantiser.scale.detach().clone()
    assert (first[2, :3] == 0).all()
    quantiser(weight)
    assert torch.equal(quantiser.scale, first)
    quantiser(WEIGHT)
    wanted = encode.fit_scale(WEIGHT, 4, config, 7)
    assert torch.allclose(quantiser.scale[2, :3], wanted[2, :3])
    assert len(quantiser.learned_from_the_start()) == first.numel() - 3 * (method == "lsq")


def test_scales_per_tile_are_stored_with_the_rows_of_their_tiles() -> None:
    net = nn.Sequential(layer_of(3, nn.Linear(40, 6)))
    config = BinaryPlanes(scale="per_tile")
    net[0].weight_quantiser = WeightQuantiser.fitted(net[0].weight, 3, "lsq", config, 16)
    state = net.state_dict()
    (found,) = trained_scales(state).values()
    assert (found.bits, found.tile_rows) == (3, 16)
    assert torch.equal(found.scale, net[0].weight_quantiser.scale)
    other = nn.Sequential(nn.Linear(40, 6))
    restore_quantisers(other, state)
    other.load_state_dict(state, assign=True)
    x = torch.randn(5, 40)
    assert torch.equal(other.eval()(x), net.eval()(x))
    without = {name: tensor for name, tensor in state.items() if not name.endswith("tile_rows")}
    for broken in (without, state | {"0.weight_quantiser.tile_rows": torch.tensor(0)}):
        with pytest.raises(InputError, match="tile_rows"):
            trained_scales(broken)
        with pytest.raises(InputError, match="tile_rows"):
            restore_quantisers(nn.Sequential(nn.Linear(40, 6)), broken)


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


@given(bits=st.integers(2, 12), per_channel=st.booleans(), size=st.floats(1e-6, 1e3))
def test_observed_scales_of_zeros_become_those_of_the_weights_that_come(
    bits: int, per_channel: bool, size: float
) -> None:
    config = BinaryPlanes(scale="per_channel" if per_channel else "per_tensor", scale_method="minmax")
    weight = WEIGHT * size
    quantiser = WeightQuantiser.fitted(torch.zeros_like(weight), bits, "minmax", config).train()
    assert not quantiser(torch.zeros_like(weight)).any()
    quantiser(weight)
    assert torch.allclose(quantiser.scale, encode.fit_scale(weight, bits, config))


@pytest.mark.parametrize("method", ["lsq", "minmax"])
@pytest.mark.parametrize("scale", ["per_channel", "per_tensor"])
def test_a_channel_of_zeros_changes_nothing_for_the_others(method: Method, scale: str) -> None:
    config = BinaryPlanes(scale=scale, scale_method="mse" if method == "lsq" else "minmax")
    weight = WEIGHT.clone()
    weight[2] = 0
    quantiser = WeightQuantiser.fitted(weight, 4, method, config).train()
    live = encode.fit_scale(weight, 4, config)
    if scale == "per_channel":
        live[2] = 0
    assert torch.equal(quantiser.scale, live)
    assert torch.equal(quantiser(weight)[2], torch.zeros(40))
    weight[2] = WEIGHT[2]
    rounded = quantiser(weight)
    assert (rounded[2] - weight[2]).norm() < 0.3 * weight[2].norm()
    assert torch.equal(quantiser.scale[:2], live[:2])


@example(bits=7, exponents=[-0.5, -0.25], begins=0.0)
@given(bits=st.integers(2, 8), exponents=st.lists(st.floats(-6, 3), min_size=1, max_size=6), begins=st.floats(0, 0.001))
def test_learned_scales_that_begin_with_nothing_fit_whatever_comes(
    bits: int, exponents: list[float], begins: float
) -> None:
    quantiser = WeightQuantiser.fitted(WEIGHT * begins, bits, "lsq", BinaryPlanes()).train()
    for exponent in exponents:
        weight = WEIGHT * 10**exponent
        found = (quantiser(weight) - weight).norm(dim=1)
        best = encode.fit_scale(weight, bits, BinaryPlanes())
        least = (encode.quantise(weight, best, bits) * best[:, None] - weight).norm(dim=1)
        # a scale stays while it fits: it clips a tenth, or is up to twice as large as it need be
        assert (found <= 2.1 * least + 0.15 * weight.norm(dim=1)).all()
    gradient = torch.autograd.grad(quantiser(weight.requires_grad_()).sum(), weight)[0]
    assert torch.equal(gradient, torch.ones_like(weight))  # what is clipped goes on growing, and the scale with it
    assert not quantiser(0 * weight).any()
    assert not quantiser.scale.any()


def test_only_scales_of_next_to_nothing_follow_and_only_in_training() -> None:
    sizes = torch.tensor([1.0, 0.0, 1e-4, 1.0, 0.5, 1.0])
    quantiser = WeightQuantiser.fitted(WEIGHT * sizes[:, None] / 40**0.5, 4, "lsq", BinaryPlanes()).train()
    assert quantiser.followed.tolist() == [1, 2]
    before = quantiser.scale.detach().clone()
    assert torch.equal(quantiser.learned_from_the_start(), before[[0, 3, 4, 5]])
    quantiser.eval()(WEIGHT)
    assert torch.equal(quantiser.scale, before)
    quantiser.train()(WEIGHT)
    assert (quantiser.scale == before).tolist() == [True, False, False, True, True, True]
    assert WeightQuantiser.fitted(WEIGHT, 4, "lsq", BinaryPlanes()).followed is None


@settings(max_examples=settings.default.max_examples // 10)  # each takes 1200 steps
@given(bits=st.integers(2, 12), sizes=st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=6))
def test_ranges_that_follow_grow_at_once_and_shrink_slowly(bits: int, sizes: list[float]) -> None:
    quantiser = ActivationQuantiser(bits, torch.tensor(0.0), "lsq", 99.0).train()
    assert not quantiser(torch.zeros(3, 4)).any()
    assert quantiser.range == 0
    x = torch.cat([WEIGHT, torch.zeros(500, 40)])  # padding says nothing
    percentile = float(WEIGHT.abs().quantile(0.99))
    for size in sizes:
        quantiser(x * size)
        assert quantiser.range.item() > 0.75 * percentile * size
    quantiser(0 * x)
    for _ in range(1200):
        quantiser(x * 1e-3)
    assert quantiser.range.item() < 2.2e-3 * percentile
    quantiser.eval()(x * 1e6)
    assert quantiser.range.item() < 2.2e-3 * percentile
    assert quantiser.range.requires_grad


@pytest.mark.parametrize("led_to", [0.0, -3e-5])
def test_what_learning_leads_below_zero_is_led_back(led_to: float) -> None:
    weights = WeightQuantiser(4, torch.full((6,), led_to))
    inputs = ActivationQuantiser(4, torch.tensor(led_to))
    for quantiser, value in ((weights, weights.scale), (inputs, inputs.range)):
        (quantiser(WEIGHT) - WEIGHT).square().sum().backward()
        assert (value.grad < 0).all()


def test_state_is_that_of_learned_quantisers_whether_or_not_they_follow() -> None:
    state = WeightQuantiser.fitted(WEIGHT, 4, "lsq", BinaryPlanes()).state_dict()
    assert state.keys() == WeightQuantiser.fitted(0 * WEIGHT, 4, "lsq", BinaryPlanes()).state_dict().keys()


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
    assert {layer: found.bits for layer, found in trained_scales(state).items()} == {"0": 3, "1": 2}

    again = nn.Sequential(nn.Linear(40, 6), nn.Linear(6, 3))
    restore_quantisers(again, state)
    again.load_state_dict(state, assign=True)
    assert torch.equal(again(x), digital(x))
    assert [module.weight_quantiser.largest for module in again] == [3, 1]


def test_quantisers_of_other_layers_are_left_to_the_loading_of_the_state() -> None:
    net = nn.Sequential(nn.Linear(40, 6))
    restore_quantisers(net, {"9.weight_quantiser.bits": torch.tensor(3), "9.weight_quantiser.scale": torch.ones(1)})
    assert type(net[0]) is nn.Linear


@pytest.mark.parametrize(("quantiser", "value"), [("weight_quantiser", "scale"), ("input_quantiser", "range")])
def test_a_quantiser_without_its_values_is_a_damaged_file(quantiser: str, value: str) -> None:
    state = nn.Sequential(layer_of(3, nn.Linear(40, 6))).state_dict()
    del state[f"0.{quantiser}.{value}"]
    said = rf"^the file has 0\.{quantiser}\.bits but not 0\.{quantiser}\.{value}; it is damaged$"
    with pytest.raises(InputError, match=said):
        restore_quantisers(nn.Sequential(nn.Linear(40, 6)), state)


def test_a_trained_transform_of_another_size_is_refused_by_its_name_in_the_file(tmp_path: Path) -> None:
    learner = nn.Sequential(layer_of(3, nn.Linear(40, 6)))
    factors = torch.ones(40)
    factors[3] = 0
    learner[0].trained_transform = TrainedTransform(factors, 8, torch.zeros(6, 1))
    state = learner.state_dict()
    restore_quantisers(nn.Sequential(nn.Linear(40, 6)), state)
    prefix = "0.trained_transform."
    damages = (
        ({"factors": torch.cat([factors, torch.ones(8)])}, r"factors is \[48\], not \[40\]"),
        ({"factors": factors[:32]}, r"factors is \[32\], not \[40\]"),
        ({"hidden_weight": torch.zeros(5, 1)}, r"hidden_weight is \[5, 1\], not \[6, 1\]"),
        ({"hidden_weight": torch.zeros(6, 2)}, r"hidden_weight is missing, or not finite, or not \[out, 1\]"),
        ({"block": torch.tensor(3)}, "block is 3, not a power of 2 up to 40"),
        ({"factors": factors[:, None]}, r"factors is \[40, 1\], or not finite"),
    )
    for damage, message in damages:
        damaged = state | {prefix + name: tensor for name, tensor in damage.items()}
        with pytest.raises(InputError, match=f"trained_transform.{message}") as caught:
            restore_quantisers(nn.Sequential(nn.Linear(40, 6)), damaged)
        assert len(str(caught.value).splitlines()) == 1
        memsim.save_checkpoint(tmp_path / "learner.safetensors", damaged, {})
        with pytest.raises(InputError, match=f"learner.safetensors: 0.*trained_transform.{message}"):
            memsim.map_checkpoint(tmp_path / "learner.safetensors", "ideal", bits=3, out=tmp_path / "chip.safetensors")
