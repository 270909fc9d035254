"""Whole networks in training: layers of several names, shared weights, fused kernels, torchaudio's networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memsim
from memsim.errors import InputError
from memsim.hardware import load_hardware
from memsim.nn.chip import mapping_of
from memsim.nn.mapping import measure_inputs
from memsim.nn.quantisation import Quantisation, QuantisationConfig
from memsim.nn.quantisers import restore_quantisers
from tests.nn.layers import PHYSICAL, drawn, normal, quantised_layers
from tests.nn.test_layer_adapters import MATRICES, NETWORKS, speech
from tests.nn.test_quantisation import Mixed

TILES = {"tile": {"rows": 16, "cols": 8}, "digital": []}
IDEAL = load_hardware({"base": "ideal", "dac": {"bits": 8}, **TILES})
X = normal(4, 3, 20)


def quantised(net: nn.Module, *batches: Any, bits: int = 3, spec: Any = IDEAL, **config: Any) -> nn.Module:
    recipe = QuantisationConfig.model_validate({"layers": "all", **config})
    return Quantisation(recipe, bits, spec).apply(net, measure_inputs(net, batches)).eval()


def mapped(net: nn.Module, *batches: Any, **options: Any) -> nn.Module:
    return memsim.map_model(net, IDEAL, calibration=measure_inputs(net, batches), **options)


def mostly_close(got: Tensor, wanted: Tensor) -> None:
    """But for the rare value at the middle of two codes, which may round to either and moves what follows from it."""
    assert ((got - wanted).abs() > 1e-4).float().mean() < 0.05


def test_all_layers_on_arrays_are_quantised_if_the_recipe_says_so() -> None:
    net = quantised(drawn(Mixed)[0], X, full_precision=["lstm.weight_hh*"], outputs={"bits": 8})
    with torch.no_grad():
        net.train()(X)
    names = [
        *("front", "middle", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj"),
        *("lstm.weight_ih_l0", "last"),
    ]
    assert [name for name, _ in quantised_layers(net)] == names
    chip = mapped(net.eval(), X, exclude=["lstm.weight_hh*"])
    with torch.no_grad():
        mostly_close(chip(X), net(X))
    overridden = drawn(Mixed)[0]
    overrides = [{"match": "attention.?_proj", "weight_bits": 5, "input_bits": 6}, {"match": "front", "weight_bits": 2}]
    found = dict(quantised_layers(quantised(overridden, X, overrides=overrides)))
    assert [int(found[name].weight_quantiser.bits) for name in names] == [2, 3, 5, 5, 5, 3, 3, 3]
    assert int(found["attention.k_proj"].input_quantiser.bits) == 6
    with pytest.raises(InputError, match=r"lstm\.weight: matches no layer \(layers are named like front, middle, att"):
        quantised(drawn(Mixed)[0], X, full_precision=["lstm.weight"])


def test_layers_print_their_sizes_and_how_they_round() -> None:
    spec = load_hardware({**PHYSICAL, "dac": {"bits": 7}})
    shown = repr(quantised(drawn(Mixed)[0], X, spec=spec, hardware={}, inputs={"method": "minmax"}))
    for text in (
        "(front): QuantisedConvolution(\n    kernel_size=(3,), stride=(1,), dilation=(1,)\n",
        "(middle): QuantisedLinear(\n    in_features=6, out_features=4\n",
        "(lstm): QuantisedRecurrent(\n    LSTM, 4, 7, num_layers=1\n",
        "(weight_quantiser): WeightQuantiser(levels=+-3, lsq)",
        "(input_quantiser): ActivationQuantiser(bits=7, minmax)",
        "(transfer): HardwareTransfer(hardware=custom)",
    ):
        assert text in shown
    shown = repr(mapped(drawn(Mixed)[0], X, bits=4))
    assert "(lstm): MappedRecurrent(\n    LSTM, 4, 7, num_layers=1\n" in shown


@pytest.mark.parametrize("excluded", ["attention.k_proj", "attention.out_proj", "lstm.weight_hh_l0", "front"])
def test_what_is_not_on_arrays_stays_as_it_was_trained(excluded: str) -> None:
    net = quantised(drawn(Mixed)[0], X, outputs={"bits": 8})
    with torch.no_grad():
        net.train()(X)
        net.eval()
        chip = mapped(net, X, exclude=[excluded])
        assert excluded not in mapping_of(chip).layers
        mostly_close(chip(X), net(X))


def test_the_model_itself_needs_a_name() -> None:
    with pytest.raises(InputError, match=r"Conv1d, which has no name; wrap it: nn\.Sequential\(model\)"):
        quantised(nn.Conv1d(3, 2, 2), X)


def test_a_module_of_several_names_is_quantised_under_all() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv1d(3, 3, 3, padding=1)
            self.steps = nn.ModuleList([self.first, nn.Linear(20, 20)])
            self.last = self.steps[1]

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.steps[1](self.steps[0](self.first(x)).relu()))

    net = quantised(drawn(Twice)[0], X)
    assert net.steps[0] is net.first
    assert net.last is net.steps[1]
    assert [name for name, _ in quantised_layers(net)] == ["first", "steps.1"]
    chip = mapped(net, X)
    assert chip.steps[0] is chip.first
    with torch.no_grad():
        mostly_close(chip(X), net(X))
    again = drawn(Twice)[0]
    restore_quantisers(again, net.state_dict())
    again.load_state_dict(net.state_dict(), assign=True)
    assert again.steps[0] is again.first
    assert torch.equal(again(X), net(X))


class Tied(nn.Module):
    """Two linear layers of one weight, and an output of the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.second = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 5, bias=False)
        self.output = nn.Linear(5, 7, bias=False)
        self.second.weight, self.output.weight = self.first.weight, self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.second(self.first(self.embedding(x)).relu()))


TOKENS = torch.arange(7)[None]


@pytest.mark.parametrize("layers", ["linear", "all"])
def test_layers_that_share_a_weight_share_its_quantisers(layers: str) -> None:
    net = quantised(drawn(Tied)[0], TOKENS, layers=layers, outputs={"bits": 8})
    net.train()(TOKENS).square().sum().backward()
    net.eval()
    assert [name for name, _ in quantised_layers(net)] == ["first", "output"]
    assert net.second.weight is net.first.weight
    assert net.second.weight_quantiser is net.first.weight_quantiser
    assert net.second.input_quantiser is net.first.input_quantiser
    assert net.second.output_quantiser is not net.first.output_quantiser
    assert net.second.output_quantiser.range != net.first.output_quantiser.range
    chip = mapped(net, TOKENS)
    assert chip.second.matrix is chip.first.matrix
    assert float(chip.first.matrix.input_range) == pytest.approx(net.first.full_scale)
    with torch.no_grad():
        mostly_close(chip(TOKENS), net(TOKENS))


def test_gradients_of_a_shared_weight_are_the_sum_over_its_layers() -> None:
    net = quantised(drawn(Tied)[0], TOKENS, inputs=None)
    apart = copy.deepcopy(net)
    apart.second.weight = nn.Parameter(apart.first.weight.detach().clone())
    apart.second.weight_quantiser = copy.deepcopy(apart.first.weight_quantiser)
    for one in (net, apart):
        one(TOKENS).square().sum().backward()
    for part in ("weight", "weight_quantiser.scale"):
        shared, first, second = (
            dict(one.named_parameters())[f"{layer}.{part}"].grad
            for one, layer in ((net, "first"), (apart, "first"), (apart, "second"))
        )
        torch.testing.assert_close(shared, first + second)


def test_hardware_is_that_of_the_shared_matrix() -> None:
    spec = load_hardware(PHYSICAL)
    net = quantised(drawn(Tied)[0], TOKENS, spec=spec, hardware={})
    assert net.second.transfer is net.first.transfer
    exact = spec.with_settings({"programming.exact": True, "read_noise": "none"})
    statistics = measure_inputs(net, [TOKENS])
    Quantisation(QuantisationConfig(layers="all"), 3, spec).calibrate(net, statistics)
    chip = memsim.map_model(net, exact, calibration=statistics)
    with torch.no_grad():
        wanted = chip(TOKENS)
        assert (net(TOKENS) - wanted).norm() < 0.02 * wanted.norm()


def transformer() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layers", ["linear", "all"])
def test_fused_kernels_do_not_pass_quantisers_by(layers: str) -> None:
    net, x = drawn(transformer), normal(3, 5, 6)
    padding = torch.arange(5) >= torch.tensor([5, 3, 4])[:, None]
    net = quantised(net, x, layers=layers)
    again = drawn(transformer)
    restore_quantisers(again, net.state_dict())
    again.load_state_dict(net.state_dict(), assign=True)
    for one in (net, again):
        names = {product.weight_quantiser: name for name, product in quantised_layers(one)}
        called: list[nn.Module] = []
        for quantiser in names:
            quantiser.register_forward_hook(lambda module, *_, called=called: called.append(module))
        with torch.no_grad():
            without_gradients = one[0](x, src_key_padding_mask=padding)
        assert sorted(names[module] for module in called) == sorted(names.values())
        with_gradients = one[0](x, src_key_padding_mask=padding)
        torch.testing.assert_close(without_gradients[~padding], with_gradients[~padding])


def with_gradient(net: nn.Module, x: tuple[Tensor, ...]) -> set[str]:
    """The parameters that the output's gradient reaches."""
    net.zero_grad()
    net(*x)[0].square().mean().backward()
    return {key for key, parameter in net.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchaudios_networks(name: str) -> None:
    make, x, _ = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make().eval()
    of_float = set(net.state_dict())
    learned = with_gradient(net, x)
    net = quantised(net, x, bits=4)
    assert of_float < set(net.state_dict())
    quantisers = {key for key, _ in net.named_parameters() if "quantiser" in key}
    assert len(quantisers) == 2 * len(dict(quantised_layers(net)))
    assert with_gradient(net, x) == learned | quantisers
    chip = mapped(net.eval(), x)
    assert {layer.tiling.bits for layer in mapping_of(chip).mapped} == {4}
    with torch.no_grad():
        wanted = net(*x)[0]
        assert (chip(*x)[0] - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_network_of_every_layer() -> None:
    x = normal(3, 3, 20)
    net = quantised(speech(), x)
    assert [name for name, _ in quantised_layers(net)] == MATRICES
    chip = mapped(net, x)
    with torch.no_grad():
        mostly_close(chip(x), net(x))
