"""Every layer in training: it computes what ideal hardware does, with straight-through gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import memsim
from memsim.hardware import HardwareSpec, load_hardware
from memsim.nn.chip import mapping_of
from memsim.nn.layer_adapters import mappable_layers
from memsim.nn.mapping import measure_inputs
from memsim.nn.quantisation import Quantisation, QuantisationConfig
from memsim.nn.quantisers import quantiser_tensors, restore_quantisers, trained_scales
from memsim.nn.rounding import QUANTISERS, WeightQuantiser
from memsim.nn.sources import computed_tensor
from memsim.nn.transfer import HardwareTransfer, Spread
from tests.nn.layers import drawn, normal, quantised_layers

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN",
    "ignore:Using padding='same'",
    "ignore:`torch.nn.utils.weight_norm` is deprecated",
)

TILES = {"tile": {"rows": 16, "cols": 8}, "digital": []}
IDEAL = load_hardware({"base": "ideal", "dac": {"bits": 8}, **TILES})
NO_INPUTS: dict[str, Any] = {"inputs": None}
FULL = {"method": "minmax"}


class Conv1D(nn.Module):
    """As in Hugging Face transformers."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


def attended(net: nn.Module, x: Tensor) -> Tensor:
    layer = net[0]
    key, value = (normal(len(x), 7, width, seed=9) for width in (layer.kdim, layer.vdim))
    return layer(x, key, value, need_weights=False)[0]


def plain(net: nn.Module, x: Any) -> Tensor:
    result = net(x)
    while isinstance(result, tuple):
        result = result[0]
    return result


def cell(net: nn.Module, x: Tensor) -> Tensor:
    """Steps of a recurrent cell over x [steps, batch, in]."""
    state, outputs = None, []
    for step in x:
        state = net[0](step, state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs)


def normed(layer: nn.Module, name: str = "weight") -> nn.Module:
    return torch.nn.utils.parametrizations.weight_norm(layer, name, dim=0)


Run = Callable[[nn.Module, Any], Tensor]
LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor, Run]] = {
    "linear": (lambda: nn.Linear(19, 7), normal(3, 5, 19), plain),
    "linear, normed": (lambda: normed(nn.Linear(6, 4)), normal(3, 6), plain),
    "linear, normed of old": (lambda: torch.nn.utils.weight_norm(nn.Linear(6, 4)), normal(3, 6), plain),
    "conv1d": (lambda: nn.Conv1d(3, 5, 4, stride=2, dilation=2, padding=3), normal(2, 3, 17), plain),
    "conv1d, no batch": (lambda: nn.Conv1d(3, 5, 3, bias=False), normal(3, 11), plain),
    "conv1d, same, circular": (
        lambda: nn.Conv1d(3, 4, 4, padding="same", padding_mode="circular"),
        normal(2, 3, 9),
        plain,
    ),
    "depthwise": (lambda: nn.Conv1d(21, 21, 5, groups=21, padding=2), normal(2, 21, 9), plain),
    "grouped": (lambda: nn.Conv1d(6, 9, 3, groups=3, padding_mode="reflect", padding=1), normal(2, 6, 9), plain),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), normal(2, 2, 7, 6), plain),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, groups=2), normal(1, 2, 3, 4, 3), plain),
    "conv1d, normed": (lambda: normed(nn.Conv1d(4, 6, 3, groups=2)), normal(2, 4, 8), plain),
    "transposed 1d": (
        lambda: nn.ConvTranspose1d(3, 5, 4, stride=2, padding=1, output_padding=1),
        normal(2, 3, 6),
        plain,
    ),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, (2, 3), groups=2, dilation=2), normal(2, 4, 3, 4), plain),
    "lstm": (lambda: nn.LSTM(3, 5, 2, bidirectional=True, batch_first=True), normal(2, 4, 3), plain),
    "projected lstm": (lambda: nn.LSTM(3, 5, proj_size=2), normal(4, 2, 3), plain),
    "gru": (lambda: nn.GRU(3, 17), normal(4, 2, 3), plain),
    "rnn": (lambda: nn.RNN(3, 5, 2, bias=False), normal(4, 3), plain),
    "lstm, normed": (lambda: normed(nn.LSTM(3, 5), "weight_hh_l0"), normal(4, 2, 3), plain),
    "lstm cell": (lambda: nn.LSTMCell(3, 5), normal(4, 2, 3), cell),
    "gru cell": (lambda: nn.GRUCell(3, 5), normal(4, 2, 3), cell),
    "rnn cell": (lambda: nn.RNNCell(3, 5, nonlinearity="relu"), normal(4, 2, 3), cell),
    "attention": (lambda: nn.MultiheadAttention(6, 2, batch_first=True), normal(2, 5, 6), attended),
    "attention, other sizes": (
        lambda: nn.MultiheadAttention(6, 3, kdim=3, vdim=5, add_bias_kv=True, batch_first=True),
        normal(2, 5, 6),
        attended,
    ),
    "gpt-2's conv1d": (lambda: Conv1D(4, 6), normal(2, 3, 6), plain),
}


def run_of(name: str) -> Run:
    return LAYERS[name][2]


def floating(name: str) -> nn.Module:
    make = LAYERS[name][0]
    return drawn(make)


def calibration(name: str) -> Callable[[nn.Module], object]:
    _, x, run = LAYERS[name]
    return lambda net: run(net, x)


def quantised(
    net: nn.Module, run: Callable[[nn.Module], object], spec: HardwareSpec = IDEAL, bits: int = 3, **config: Any
) -> nn.Module:
    """`net` with quantisers of `bits` in all of its layers, their observers having seen what `run` runs on."""
    recipe = QuantisationConfig.model_validate({"layers": "all", **config})
    Quantisation(recipe, bits, spec).apply(net, measure_inputs(net, run))
    with torch.no_grad():
        run(net.train())
    return net.eval()


def layer_of(name: str, **options: Any) -> nn.Module:
    return quantised(floating(name), calibration(name), **options)


def mostly_close(got: Tensor, wanted: Tensor) -> None:
    """But for the rare value at the middle of two codes, which may round to either."""
    assert got.shape == wanted.shape
    assert ((got - wanted).abs() > 1e-5).sum() <= max(2, 0.02 * wanted.numel())


@pytest.mark.parametrize("outputs", [None, {"bits": 6}], ids=["", "outputs"])
@pytest.mark.parametrize("name", LAYERS)
def test_ideal_hardware_computes_what_was_trained(name: str, outputs: Any) -> None:
    net, x, run = layer_of(name, outputs=outputs), LAYERS[name][1], run_of(name)
    chip = memsim.map_model(net, IDEAL, calibration=measure_inputs(net, calibration(name)))
    mapping = mapping_of(chip)
    assert {layer.tiling.bits for layer in mapping.mapped} == {3}
    assert mapping.layers.keys() == dict(quantised_layers(net)).keys()
    for matrix, product in quantised_layers(net):
        assert torch.equal(mapping.layers[matrix].scale, product.weight_quantiser.scale)
        assert float(mapping.layers[matrix].input_range) == pytest.approx(product.full_scale)
    with torch.no_grad():
        mostly_close(run(chip, x), run(net, x))
        assert (run(net, x) - run(floating(name), x)).abs().max() > 1e-3  # 3 bits are few


@pytest.mark.parametrize("name", LAYERS)
def test_16_bits_compute_as_torch_does(name: str) -> None:
    spec = IDEAL.with_settings({"dac.bits": 12})
    net, x, run = layer_of(name, spec=spec, bits=16, inputs=FULL), LAYERS[name][1], run_of(name)
    with torch.no_grad():
        torch.testing.assert_close(run(net, x), run(floating(name), x), rtol=5e-3, atol=5e-3)


def rounded_weights(net: nn.Module) -> dict[str, Tensor]:
    """The tensors that hold weights, by name, with the values that the quantisers of `net` make of them."""
    found: dict[str, Tensor] = {}
    products = dict(quantised_layers(net))
    for layer in mappable_layers(net):
        for local, source in layer.sources.items():
            stored = computed_tensor(net, source.tensor)
            places = source.matrix(torch.arange(stored.numel()).view(stored.shape))
            values = products[layer.matrices[local]].weight_quantiser(source.matrix(stored))
            so_far = found.get(source.tensor, torch.zeros_like(stored)).flatten()
            found[source.tensor] = so_far.scatter(0, places.flatten(), values.flatten()).view(stored.shape)
    return found


def with_tensors(net: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """`net` with these in place of its parameters and of what is computed of them."""
    for key, tensor in tensors.items():
        owner, _, name = key.rpartition(".")
        layer = net.get_submodule(owner)
        if torch.nn.utils.parametrize.is_parametrized(layer, name):
            torch.nn.utils.parametrize.remove_parametrizations(layer, name)
        elif layer._forward_pre_hooks and name == "weight":
            torch.nn.utils.remove_weight_norm(layer)
        layer._parameters.pop(name)
        setattr(layer, name, tensor)
    return net


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_the_float_layer_with_rounded_weights(name: str) -> None:
    """By the chain rule through torch's own layer: the quantisers' own gradients are tested with them."""
    net, run = layer_of(name, **NO_INPUTS), run_of(name)
    x = LAYERS[name][1].clone().requires_grad_()
    others = {key: value for key, value in net.named_parameters() if key in floating(name).state_dict()}
    by_torch = run(with_tensors(floating(name), others | rounded_weights(net)), x)
    towards = normal(*by_torch.shape, seed=5)
    wanted = torch.autograd.grad((by_torch * towards).sum(), [x, *net.parameters()])
    got = run(net, x)
    torch.testing.assert_close(got, by_torch, rtol=1e-4, atol=1e-5)
    for found, other in zip(torch.autograd.grad((got * towards).sum(), [x, *net.parameters()]), wanted, strict=True):
        assert found.abs().max() > 0
        torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_pass_quantised_inputs_as_they_are(name: str) -> None:
    """With inputs of 12 bits and weights of 16, rounding is lost in the tolerance; what is left is torch's gradient."""
    net, run = layer_of(name, spec=IDEAL.with_settings({"dac.bits": 12}), bits=16, inputs=FULL), run_of(name)
    twin, x = floating(name), LAYERS[name][1].clone().requires_grad_()
    widen(net)
    parameters = {key: value for key, value in net.named_parameters() if key in twin.state_dict()}
    of_twin = [dict(twin.named_parameters())[key] for key in parameters]
    towards = normal(*run(twin, x).shape, seed=5)
    wanted = torch.autograd.grad((run(twin, x) * towards).sum(), [x, *of_twin])
    found = torch.autograd.grad((run(net, x) * towards).sum(), [x, *parameters.values()])
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def widen(net: nn.Module) -> None:
    """So that nothing is at the very end of a range, where gradients end."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, QUANTISERS):
                (module.scale if isinstance(module, WeightQuantiser) else module.range).mul_(1.01)


def test_hidden_states_are_rounded_at_every_step() -> None:
    net = layer_of("gru", outputs={"bits": 5})
    widen(net)
    x, layer = LAYERS["gru"][1].clone().requires_grad_(), net[0]
    from_input, from_hidden = (layer.products[f"weight_{part}_l0"] for part in ("ih", "hh"))
    hidden, outputs = torch.zeros(2, 17), []
    for step in x:
        gates = from_input.output_quantiser(
            from_input.input_quantiser(step) @ from_input.weight_quantiser(layer.weight_ih_l0).T + layer.bias_ih_l0
        )
        recurrent = from_hidden.output_quantiser(
            from_hidden.input_quantiser(hidden) @ from_hidden.weight_quantiser(layer.weight_hh_l0).T + layer.bias_hh_l0
        )
        (r, z, n), (hr, hz, hn) = gates.chunk(3, -1), recurrent.chunk(3, -1)
        new = torch.tanh(n + torch.sigmoid(r + hr) * hn)
        hidden = new + torch.sigmoid(z + hz) * (hidden - new)
        outputs.append(hidden)
    by_hand, got = torch.stack(outputs), net(x)[0]
    torch.testing.assert_close(got, by_hand)
    wanted = torch.autograd.grad(by_hand.square().sum(), [x, *net.parameters()])
    found = torch.autograd.grad(got.square().sum(), [x, *net.parameters()])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_tensors_keep_their_names_and_give_the_quantisers_back(name: str) -> None:
    net, x, run = layer_of(name, outputs={"bits": 6}), LAYERS[name][1], run_of(name)
    state, of_float = net.state_dict(), floating(name).state_dict()
    assert sorted(set(state) - set(of_float)) == sorted(quantiser_tensors(state))
    assert set(of_float) < set(state)
    scales = trained_scales(state)
    for matrix, product in quantised_layers(net):
        trained = scales.pop(matrix)
        assert trained.bits == 3
        assert torch.equal(trained.scale, product.weight_quantiser.scale)
    assert not scales

    again = floating(name)
    restore_quantisers(again, state)
    again.load_state_dict(state, assign=True)
    with torch.no_grad():
        assert torch.equal(run(again, x), run(net, x))
    assert not [module for module in again.modules() if module.training]


PHYSICAL = load_hardware({"base": "physical", **TILES, "read_noise": None})
THROUGH = {"hardware": {"programming_spread": 1.0}}


@pytest.mark.parametrize("name", LAYERS)
def test_training_goes_through_what_an_exactly_programmed_chip_computes(name: str) -> None:
    net, run, x = layer_of(name, spec=PHYSICAL, **THROUGH), run_of(name), LAYERS[name][1]
    statistics = measure_inputs(net, calibration(name))
    Quantisation(QuantisationConfig(layers="all"), 3, PHYSICAL).calibrate(net, statistics)
    chip = memsim.map_model(net, PHYSICAL.with_settings({"programming.exact": True}), calibration=statistics)
    for matrix, product in quantised_layers(net):
        on_chip = mapping_of(chip).layers[matrix]
        assert product.transfer.gain_per_ampere == pytest.approx(float(on_chip.gain_per_ampere), rel=1e-4)
        torch.testing.assert_close(product.transfer.adc_range, on_chip.adc_range, rtol=1e-4, atol=0)
    with torch.no_grad():
        wanted, exact = run(chip, x), run(without_transfer(net), x)
        assert (run(net, x) - wanted).norm() < 0.03 * wanted.norm()  # codes differ by one now and then
        assert (exact - wanted).norm() > 0.003 * wanted.norm()


def without_transfer(net: nn.Module) -> nn.Module:
    twin = copy.deepcopy(net)
    for _, product in quantised_layers(twin):
        product.transfer = None
    return twin


@pytest.mark.parametrize("name", ["conv1d", "grouped", "depthwise", "transposed 2d", "attention", "gpt-2's conv1d"])
def test_the_spread_of_programming_is_drawn_by_its_key(name: str) -> None:
    net, run, x = layer_of(name, spec=PHYSICAL, **THROUGH), run_of(name), LAYERS[name][1]

    def output(key: int, size: float) -> Tensor:
        for module in net.modules():
            if isinstance(module, HardwareTransfer):
                module.spread = Spread(key, size)
        with torch.no_grad():
            return run(net, x)

    mean, one = output(0, 0.0), output(1, 1.0)
    assert torch.equal(output(1, 1.0), one)
    assert not torch.equal(output(2, 1.0), one)
    assert not torch.equal(mean, one)
    chips = [
        memsim.map_model(net, PHYSICAL, seed=seed, calibration=measure_inputs(net, calibration(name)))
        for seed in (0, 1)
    ]
    of_chips = torch.stack([run(chip, x) - mean for chip in chips]).norm() / 2**0.5
    of_spread = torch.stack([output(key, 1.0) - mean for key in (1, 2)]).norm() / 2**0.5
    # a few hundred cells, each of a spread of its own, whose outputs correlate
    assert of_spread / of_chips == pytest.approx(1, abs=0.5)


def on_ideal_hardware(net: nn.Module, run: Callable[[nn.Module], Any]) -> tuple[Tensor, Tensor]:
    """What `run` gives on the chip, and in training; outputs are not rounded, as small sums are often at the very
    middle of two codes."""
    net = quantised(net, run)
    chip = memsim.map_model(net, IDEAL, calibration=measure_inputs(net, run))
    with torch.no_grad():
        return run(chip), run(net)


def agrees_with_ideal_hardware(net: nn.Module, run: Callable[[nn.Module], Any]) -> None:
    got, wanted = on_ideal_hardware(net, run)
    mostly_close(got, wanted)
    assert (got - wanted).abs().max() <= 0.1 * wanted.abs().max() + 1e-6


COUNT = st.integers(1, 3)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_convolutions_of_any_shape(data: st.DataObject) -> None:
    dimensions = data.draw(COUNT)
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dimensions))  # noqa: E731
    groups, ins, outs, batch = (data.draw(COUNT) for _ in range(4))
    kernel, stride, dilation = draw(1, 3), draw(1, 3), draw(1, 2)
    mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    options = {"stride": stride, "dilation": dilation, "groups": groups, "bias": data.draw(st.booleans())}
    size = tuple(d * (k - 1) + 1 + e for d, k, e in zip(dilation, kernel, draw(1, 4), strict=True))
    turned = data.draw(st.booleans())
    if turned:
        conv: Any = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dimensions]
    else:
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        options |= {"padding": draw(0, 1), "padding_mode": mode}
    net = drawn(lambda: conv(groups * ins, groups * outs, kernel, **options))
    x = normal(batch, groups * ins, *size)
    got, wanted = on_ideal_hardware(net, lambda net: net(x))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_recurrent_layers_of_any_size(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]))
    inputs, hidden = data.draw(st.integers(1, 20)), data.draw(st.integers(3, 12))
    options = {"num_layers": data.draw(st.integers(1, 2)), "bidirectional": data.draw(st.booleans())}
    if kind is nn.LSTM:
        options["proj_size"] = data.draw(st.sampled_from([0, 2]))
    net = drawn(lambda: kind(inputs, hidden, **options))
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    packed = pack_sequence([normal(length, inputs, seed=length) for length in lengths], enforce_sorted=False)
    agrees_with_ideal_hardware(net, lambda net: net(packed)[0].data)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_attention_of_any_size(data: st.DataObject) -> None:
    heads, width = data.draw(COUNT), data.draw(st.integers(1, 6))
    queries, keys, batch = (data.draw(st.integers(1, 5)) for _ in range(3))
    kdim, vdim = (data.draw(st.sampled_from([heads * width, 3, 17])) for _ in range(2))
    options = {"bias": data.draw(st.booleans()), "add_zero_attn": data.draw(st.booleans())}
    net = drawn(lambda: nn.MultiheadAttention(heads * width, heads, kdim=kdim, vdim=vdim, batch_first=True, **options))
    q, k, v = (normal(batch, n, w, seed=w) for n, w in ((queries, heads * width), (keys, kdim), (keys, vdim)))
    hidden = torch.arange(keys) >= 1 + torch.arange(batch)[:, None] % keys
    agrees_with_ideal_hardware(net, lambda net: net[0](q, k, v, key_padding_mask=hidden)[0])
